# SPDX-License-Identifier: Apache-2.0
"""Plain data that describes an encoder: what was requested, and what was built.

Instances cross process boundaries, so nothing here holds a Keras or TensorFlow object, except a
model that the caller passed in as an object.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.encoders.rescaling import Rescaling


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """What is kept of a model that was named, so that the library is not asked for it again.

    Attributes:
        architecture: the JSON of the Keras model, without its weights; empty for other frameworks,
            whose encoders are kept whole.
        pixels: how its library prepares pixels, by the names of the fields of `RunConfig`.
        image_size: (H, W) of the images, if the model itself takes any.
        notes: what was said about the model.
    """

    architecture: str = ""
    pixels: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The options of a run that concern the encoder.

    Attributes:
        model: a path, a URI, the name of a model in a library such as ``keras:NAME``,
            ``module:callable``, a callable, a Keras model, or a PyTorch module.
        folder: the folder to put on the import path.
        image_shape: (H, W, C) of the images of an array source. It is used if the model's own input
            has no fixed size.
        channels_first: whether the model takes (N, C, H, W). None means that the model decides.
        pixel_options: the names of the pixel options that the user has given. The library that a
            model is from decides the others.
        kept: the model, if it was loaded by its name before. Its weights are then set later.
    """

    model: Any
    folder: str
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    submodel: str | None = None
    weights: str | None = None
    layers: tuple[str, ...] = ()
    pool: str | None = None
    image_size: tuple[int, int] | None = None
    image_shape: tuple[int, int, int] | None = None
    preprocess: Any = None
    engine: str = "auto"
    precision: str = "float32"
    batch_size: int = 16
    tags: tuple[str, ...] | None = None
    signature: str | None = None
    channels_first: bool | None = None
    pixel_options: tuple[str, ...] = ()
    kept: KeptModel | None = None

    @property
    def model_name(self) -> str:
        """Return the model's name as the run folder records it."""
        if isinstance(self.model, str):
            return redact_uri(self.model)
        return getattr(self.model, "__qualname__", None) or str(
            getattr(self.model, "name", type(self.model).__name__)
        )

    @property
    def can_be_loaded_again(self) -> bool:
        """Return whether another process can load the model and the preprocessing by name."""
        return isinstance(self.model, str) and (
            self.preprocess is None or isinstance(self.preprocess, str)
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """A requested layer: its feature column, its pooling, and the length of its features.

    `channel_axis` is the axis of the layer's channels, or -1 if it is the last one.
    """

    layer: str
    column: str
    pool: str
    dimension: int
    channel_axis: int = -1


@dataclass(frozen=True)
class TensorFlowGraph:
    """A serialized GraphDef, its input tensor, and its output tensors.

    `content` is empty in the messages to the actors, which read it from the run folder.
    """

    content: bytes
    input_name: str
    output_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A built encoder that can be sent to the actors.

    Attributes:
        image_shape: (H, W, C) of the images that the encoder takes.
        engine: the name of the engine that runs it.
        architecture: a digest of what the encoder computes, without its weights.
        weights_digest: a digest of the weights.
        framework: the name of the framework that the model comes from.
        graph: the serialized graph with its weights, in the format of the framework (for Keras, a
            GraphDef with its variables folded to constants), or None if the engine calls the Keras
            model itself. That model is then loaded again, and its weights are set to `weights`.
        input_name: the input tensor of `graph`.
        output_names: the output tensors of `graph`, in the order of `outputs`.
        rescaling: what the encoder does to its pixels before its first layer with weights.
        notes: choices that were made while the encoder was built.
        advice: the preprocessing that a known architecture needs, or an empty string.
        preprocessing: the graph of ``--preprocess`` if `graph` does not contain it.
    """

    spec: EncoderSpec
    image_shape: tuple[int, int, int]
    outputs: tuple[Output, ...]
    engine: str
    architecture: str
    weights_digest: str
    graph: bytes | None
    input_name: str
    output_names: tuple[str, ...]
    weights: tuple[Array, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rescaling: Rescaling = field(default_factory=lambda: Rescaling(dtype="float32"))
    advice: str = ""
    framework: str = "keras"
    preprocessing: TensorFlowGraph | None = None

    @property
    def takes_bytes(self) -> bool:
        """Return whether the encoder takes the contents of image files instead of pixels.

        `image_shape` is then the size for thumbnails.
        """
        return self.rescaling.dtype == "string"


Weights = tuple[Array, ...]
# Starts to build an encoder, and returns a function that waits for it. The arguments are what to
# build, the number of threads for computing, and the weights that an earlier start of the run has
# saved.
Build = Callable[[EncoderSpec, int, Weights | None], Callable[[], Encoder]]
