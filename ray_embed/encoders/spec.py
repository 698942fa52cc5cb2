# SPDX-License-Identifier: Apache-2.0
"""The encoder: loaded, its layers found, traced into one graph, and run by an engine.

What crosses from the process that builds it to those that use it is plain data, below.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_embed.core.uri import shown
from ray_embed.encoders.rescaling import Rescaling

# Those that run the graph with its variables folded to constants.
GRAPH_ENGINES = ("openvino", "xla", "folded")


@dataclass(frozen=True)
class EncoderSpec:
    """What is asked of an encoder: the options of a run that concern it.

    `image_shape` is that of the images of an array source, used where the model's own input has
    no fixed size; `folder` goes on the import path. `channels_first` tells whether the model takes
    (N, C, H, W); None leaves that to what the model itself says.
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

    @property
    def model_name(self) -> str:
        """Name the model as the run folder records it."""
        if isinstance(self.model, str):
            return shown(self.model)
        return getattr(self.model, "__qualname__", None) or str(
            getattr(self.model, "name", type(self.model).__name__)
        )


@dataclass(frozen=True)
class Output:
    """One layer asked for: the column its features go to, its pooling, and their dimension.

    `channel_axis` is the axis of its channels where that is not the last one.
    """

    layer: str
    column: str
    pool: str
    dimension: int
    channel_axis: int = -1


@dataclass(frozen=True)
class Encoder:
    """A built encoder, ready to be shipped to the actors.

    `graph` is the serialized GraphDef with its variables folded to constants, from `inputs` to
    `outputs`; None where the engine calls the Keras model itself, which then is loaded again and
    given `weights`. `rescaling` is what the encoder does to its pixels before its first layer with
    weights; `advice` names the preprocessing that a known architecture needs; `notes` are what was
    chosen while building, where there was a choice.
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
    weights: tuple[np.ndarray[Any, Any], ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rescaling: Rescaling = field(default_factory=lambda: Rescaling(dtype="float32"))
    advice: str = ""

    @property
    def takes_bytes(self) -> bool:
        """Whether batches hold the contents of image files, and `image_shape` is for thumbnails."""
        return self.rescaling.dtype == "string"
