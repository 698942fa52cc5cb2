# SPDX-License-Identifier: Apache-2.0
"""Loads the model in every form it may be given in, with its weights."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.config import is_callable_reference
from ray_embed.core import user_code
from ray_embed.encoders import lambda_layers, saved_model, unsafe_models
from ray_embed.encoders.channel_axes import looks_channels_first
from ray_embed.encoders.custom_objects import (
    Objects,
    describe_missing,
    find_custom_objects,
    missing_objects,
)
from ray_embed.encoders.encoded_images import call_with_contents
from ray_embed.encoders.file_kind import HDF5, ZIP, file_kind, with_ending
from ray_embed.encoders.keras_compat import finish_normalization, keras_family
from ray_embed.encoders.model_files import refuse_other_forms
from ray_embed.encoders.model_json import is_model_json, keras_of, model_from_json, require_weights
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.submodels import attributes_of, find_submodel, nested_models
from ray_embed.errors import InputError

_OTHER_FORMS = (
    "\nKeras cannot read every .h5 file that it writes: save the model as .keras, or give --model "
    "module:callable, and this file to --weights"
)
_ImageShape = tuple[int | None, int | None, int | None]
# Layers that leave the axes of the images as they are.
_IN_PLACE = {
    "InputLayer",
    "Rescaling",
    "Normalization",
    "Activation",
    "ReLU",
    "Dropout",
    "GaussianNoise",
    "Identity",
}


@dataclass(frozen=True)
class Loaded:
    """A model that can be called.

    `call` takes (N, H, W, C) float32 and gives the model's outputs; `input_shape` is (H, W, C),
    each None where the model leaves it open; `model` is the Keras model, or None for `signature`,
    a concrete function. `dtype` is the type of its input: of `string`, `call` takes (N,) contents
    of image files. `outer` is what holds the model, and `between` what leads from there to it;
    `custom_objects` are the classes and functions that it was loaded with. `main_output` is the one
    of several outputs that is taken where no layer is asked for; `notes` say what was chosen.
    `channels_first` tells whether the model itself gets (N, C, H, W).
    """

    call: Callable[[Any], Any]
    input_shape: _ImageShape
    model: Any = None
    outer: Any = None
    dtype: str = "float32"
    between: tuple[Any, ...] = ()
    custom_objects: Objects = field(default_factory=dict)
    main_output: str | None = None
    notes: tuple[str, ...] = ()
    channels_first: bool = False
    signature: Any = None

    @property
    def takes_bytes(self) -> bool:
        """Whether it takes the contents of image files."""
        return self.dtype == "string"


def arranged(images: Any, channels_first: bool) -> Any:
    """Return images (N, H, W, C) as a model takes them: (N, C, H, W) if `channels_first`."""
    if not channels_first:
        return images
    import tensorflow as tf

    return tf.transpose(images, (0, 3, 1, 2))


def load(spec: EncoderSpec) -> Loaded:
    """Load the model; weights are given by :func:`give_weights` once its variables exist.

    Raises:
        InputError: there is no such model, it is unsafe to load, or not of one input image.
    """
    for module in spec.imports:
        user_code.import_module(module, f"--import {module}")
    objects: Objects = {}
    if saved_model.is_called_by_signature(spec):
        return _signature(Path(spec.model), spec)
    if isinstance(spec.model, str) and not is_callable_reference(spec.model):
        path = Path(spec.model)
        refuse_other_forms(path)
        found, objects = _from_file(path, spec)
    elif isinstance(spec.model, str) or user_code.makes(spec.model):
        found = user_code.call(spec.model, spec.model_kwargs, "--model")
    else:
        found = spec.model
    *holders, model = find_model(found, spec)
    shape, channels_first = _input_shape(model, spec)
    dtype = _input_dtype(model)
    return Loaded(
        lambda images: model(_in_range(arranged(images, channels_first), dtype), training=False),
        shape,
        model,
        holders[0] if holders else None,
        dtype,
        tuple(holders[1:]),
        objects,
        channels_first=channels_first,
    )


def _input_dtype(model: Any) -> str:
    """Return the type of a model's input; float32 where the model does not say."""
    inputs = getattr(model, "inputs", None)
    dtype = getattr(inputs[0], "dtype", "float32") if inputs else "float32"
    return str(getattr(dtype, "name", dtype))


def _in_range(images: Any, dtype: str) -> Any:
    """Limit images to what an integer input holds: interpolated pixels may lie beyond."""
    import tensorflow as tf

    kind = tf.dtypes.as_dtype(dtype)
    if not kind.is_integer or kind.size > 2:
        return images
    return tf.clip_by_value(images, float(kind.min), float(kind.max))


def give_weights(loaded: Loaded, spec: EncoderSpec, images: Any) -> None:
    """Load `--weights` into the model; a subclassed one must have been called before.

    Args:
        loaded: the model.
        spec: the path of the weights.
        images: (N, H, W, C) float32 that the model takes.

    Raises:
        InputError: they do not fit, or the model takes none.
    """
    if spec.weights is None:
        if isinstance(spec.model, str):
            require_weights(Path(spec.model))
        return
    if loaded.model is None:
        raise InputError(
            f"--weights {spec.weights}: {spec.model_name} is a SavedModel without Keras layers, "
            "which holds its weights itself; leave --weights away"
        )
    from ray_embed.encoders.weights.load import load_weights

    load_weights(loaded.model, spec.weights, loaded.outer, images, loaded.between)


def custom_object_scope(loaded: Loaded) -> contextlib.AbstractContextManager[Any]:
    """Let Keras know the classes and functions that the model was loaded with."""
    library = sys.modules[keras_family(loaded.model)]
    scope: contextlib.AbstractContextManager[Any] = library.saving.custom_object_scope(
        loaded.custom_objects
    )
    return scope


@contextlib.contextmanager
def computing_in_bfloat16(loaded: Loaded) -> Iterator[None]:
    """Let a Keras 3 model compute in bfloat16, its weights staying float32 (the mixed policy).

    Raises:
        InputError: it is another model, whose precision is fixed when it is made.
    """
    if keras_family(loaded.model) != "keras":
        raise InputError(
            "--precision bfloat16: only a Keras 3 model can be told so by TensorFlow; leave the "
            "option away, or install OpenVINO: pip install 'ray_embed[openvino]'"
        )
    import keras

    lower = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    layers = list(loaded.model._flatten_layers())
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = lower
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


def variables(loaded: Loaded) -> list[Any]:
    """Give the variables that make up the model's weights, in the model's order."""
    return [] if loaded.model is None else list(loaded.model.weights)


def get_weights(loaded: Loaded) -> tuple[np.ndarray[Any, Any], ...]:
    """Give the values of the weights, in the model's order."""
    return tuple(np.asarray(variable) for variable in variables(loaded))


def set_weights(loaded: Loaded, values: tuple[np.ndarray[Any, Any], ...]) -> None:
    """Set the weights, in the model's order.

    Raises:
        InputError: their number or shapes are not the model's.
    """
    have = [tuple(variable.shape) for variable in variables(loaded)]
    given = [value.shape for value in values]
    if have != given:
        at = next((i for i, (a, b) in enumerate(zip(have, given, strict=False)) if a != b), None)
        difference = (
            f"{len(have)} variables instead of {len(given)}"
            if at is None
            else f"variable {at} has the shape {have[at]} instead of {given[at]}"
        )
        raise InputError(
            f"the model is not the one this run folder was started with: {difference}; "
            "give another --out, or --overwrite to start anew"
        )
    for variable, value in zip(variables(loaded), values, strict=True):
        variable.assign(value)
    if loaded.model is not None:
        finish_normalization([loaded.model])


def _from_file(path: Path, spec: EncoderSpec) -> tuple[Any, Objects]:
    """Load a model file or folder; give it, and the custom objects that it was loaded with."""
    stored = _read_stored(path)
    library = importlib.import_module(stored.family)
    objects = find_custom_objects(stored.configs, spec.imports, stored.family, f"--model {path}")
    if stored.family == "tf_keras":
        lambda_layers.refuse_lambdas(path, stored.configs, objects, spec.imports)
    if path.is_dir():
        unsafe_models.refuse_reaching(path)
    with with_ending(path, stored.ending) as file:
        try:
            if stored.ending == ".json":
                found = model_from_json(path, objects)
            else:
                found = library.saving.load_model(
                    file, custom_objects=objects, compile=False, safe_mode=True
                )
        except Exception as error:
            reason = _missing(stored, objects, spec)
            if not reason:
                reason = (str(error).strip() or type(error).__name__)[:1500]
                reason = reason.replace(str(file), str(path))
                if stored.ending == ".h5":
                    reason += _OTHER_FORMS
            raise InputError(f"--model {path}: cannot be loaded: {reason}") from error
    return found, objects


@dataclass(frozen=True)
class _Stored:
    """What a model file says: the Keras that reads it, its configuration, and its true ending."""

    family: str
    configs: list[Any]
    ending: str


def _read_stored(path: Path) -> _Stored:
    """Read what a model file or folder says of itself.

    Raises:
        InputError: there is none, or it is no model.
    """
    forms = "give a .keras or .h5 file, a SavedModel folder, or module:callable"
    if not path.exists():
        raise InputError(f"--model {path}: no such file; {forms}")
    if path.is_dir():
        texts = lambda_layers.saved_model_configs(path)
        if texts is None:
            raise InputError(f"--model {path}: a folder without saved_model.pb is no SavedModel")
        version, ending = "2.0", ""
    elif is_model_json(path):
        texts, ending = [path.read_text(encoding="utf-8")], ".json"
        version = "2.0" if keras_of(path) == "tf_keras" else "3.0"
    else:
        kind = file_kind(path)
        if kind == ZIP:
            (version, text), ending = lambda_layers.keras_archive(path), ".keras"
        elif kind == HDF5:
            (version, text), ending = lambda_layers.hdf5_model(path), ".h5"
        else:
            raise InputError(f"--model {path}: not a model; {forms}")
        texts = [text]
    family = "tf_keras" if version.startswith(("1.", "2.")) else "keras"
    configs = [_without_training(lambda_layers.parsed(path, text)) for text in texts]
    return _Stored(family, configs, ending)


def _without_training(stored: Any) -> Any:
    """Leave away what is not made when a model is loaded for inference."""
    if not isinstance(stored, dict):
        return stored
    training = ("compile_config", "training_config")
    return {key: value for key, value in stored.items() if key not in training}


def _missing(stored: _Stored, objects: Objects, spec: EncoderSpec) -> str:
    """Say what the file needs that Keras is not given, as far as its configuration tells."""
    if any(map(lambda_layers.holds_lambda, stored.configs)):
        return (
            "it holds a Lambda; Python code stored in a model file is not run; build the model in "
            "a function of yours and give --model module:callable with --weights"
        )
    missing = missing_objects(stored.configs, objects, stored.family)
    return describe_missing(missing, spec.imports, stored.family) if missing else ""


def find_model(found: Any, spec: EncoderSpec) -> list[Any]:
    """Give the Keras model that is asked for in what was loaded, last, and before it what holds it.

    Raises:
        InputError: there is none.
    """
    where = f"--model {spec.model_name}"
    inside = [name for name, value in attributes_of(found).items() if keras_family(value)]
    inside += [one.path for one in nested_models(found) if one.path not in inside]
    if spec.submodel:
        chain = find_submodel(found, spec.submodel)
        if not chain or chain[-1] is None:
            raise InputError(
                f"{where}: it has no attribute, and no layer that is a model, called "
                f"{spec.submodel!r}; the models in it: {', '.join(inside) or 'none'}"
            )
        where = f"{where}, --submodel {spec.submodel}"
    else:
        chain = [found]
    if not keras_family(chain[-1]):
        mend = f"; name the one inside with --submodel: {', '.join(inside)}" if inside else ""
        kind = type(chain[-1]).__name__
        raise InputError(f"{where}: it is {kind}, a Keras model is needed{mend}")
    return chain


def _input_shape(model: Any, spec: EncoderSpec) -> tuple[_ImageShape, bool]:
    """Return (H, W, C) as far as the model fixes them, and whether its input is (N, C, H, W)."""
    # A subclassed model has no inputs before, and no fixed ones after, it has been called.
    functional = bool(getattr(model, "_is_graph_network", False)) or _keras_3_functional(model)
    inputs = getattr(model, "inputs", None) if functional else None
    if not inputs:
        built = _built_shape(model)
        if spec.channels_first or (spec.channels_first is None and looks_channels_first(built)):
            return (None, None, built[1] if len(built) == 4 else None), True
        return (None, None, None), False
    if len(inputs) > 1:
        names = ", ".join(f"{i.name.split(':')[0]} {tuple(i.shape)}" for i in inputs)
        mend = _of_images(model, spec) or "wrap it in a model of one input"
        raise InputError(
            f"--model {spec.model_name}: it has several inputs ({names}); an encoder takes one "
            f"batch of images: {mend}"
        )
    shape = tuple(inputs[0].shape)
    mend = "" if len(shape) == 4 else _of_images(model, spec)
    return _image_shape(shape, spec, model, mend)


def _built_shape(model: Any) -> tuple[int | None, ...]:
    """Return the input shape that a subclassed model was built with; empty if it was not."""
    built = getattr(model, "_build_shapes_dict", None) or {}
    shape = next(iter(built.values()), None) or getattr(model, "_build_input_shape", None)
    try:
        return tuple(shape or ())
    except (TypeError, ValueError):  # a TensorShape of unknown rank
        return ()


def _of_images(model: Any, spec: EncoderSpec) -> str:
    """Say which models inside `model` take one batch of images, an empty string for none."""
    start = f"{spec.submodel}." if spec.submodel else ""
    paths = [
        start + one.path
        for one in nested_models(model)
        if [len(image.shape) for image in getattr(one.model, "inputs", None) or ()] == [4]
    ]
    return f"name the model inside that does with --submodel: {', '.join(paths)}" if paths else ""


def _keras_3_functional(model: Any) -> bool:
    # Keras 3's Sequential has `inputs` once it is built, its Functional always.
    return any(cls.__name__ in ("Functional", "Sequential") for cls in type(model).__mro__)


def _image_shape(
    shape: tuple[int | None, ...], spec: EncoderSpec, model: Any = None, mend: str = ""
) -> tuple[_ImageShape, bool]:
    """Return (H, W, C) of an input's shape, and whether it is (N, C, H, W)."""
    if len(shape) != 4:
        raise InputError(
            f"--model {spec.model_name}: its input has the shape {shape}; "
            f"images (N, H, W, C) or (N, C, H, W) are needed{mend and f': {mend}'}"
        )
    channels_first = spec.channels_first
    if channels_first is None:
        layout = _first_data_format(model.layers) if model is not None else None
        channels_first = (
            looks_channels_first(shape) if layout is None else layout == "channels_first"
        )
    if channels_first:
        return (shape[2], shape[3], shape[1]), True
    return (shape[1], shape[2], shape[3]), False


def _first_data_format(layers: Sequence[Any]) -> str | None:
    """Return the `data_format` of the first layer that has one, if nothing before moves axes."""
    for layer in layers:
        if type(layer).__name__ in _IN_PLACE:
            continue
        if inner := getattr(layer, "layers", None):
            return _first_data_format(inner)
        found = getattr(layer, "data_format", None)
        return found if isinstance(found, str) and hasattr(layer, "kernel_size") else None
    return None


def _signature(path: Path, spec: EncoderSpec) -> Loaded:
    import tensorflow as tf

    opened = saved_model.open_signature(path, spec.tags, spec.signature)
    signature, argument, tensor = opened.function, opened.argument, opened.tensor
    if opened.takes_bytes:
        return Loaded(
            lambda contents: call_with_contents(signature, argument, contents),
            (None, None, None),
            outer=opened.loaded,
            main_output=opened.main_output,
            notes=opened.notes,
            dtype="string",
        )
    shape = (None,) * 4 if tensor.shape.rank is None else tuple(tensor.shape)
    dtype = tensor.dtype.name
    image_shape, channels_first = _image_shape(shape, spec)

    def call(images: Any) -> Any:
        pixels = _in_range(arranged(images, channels_first), dtype)
        return signature(**{argument: tf.cast(pixels, dtype)})

    return Loaded(
        call,
        image_shape,
        # The signature lives as long as the object it came from.
        outer=opened.loaded,
        main_output=opened.main_output,
        notes=opened.notes,
        dtype=dtype,
        channels_first=channels_first,
        signature=signature,
    )
