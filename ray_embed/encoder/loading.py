# SPDX-License-Identifier: Apache-2.0
"""Loads the model in every form it may be given in, with its weights."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed import importing
from ray_embed.config import is_callable_reference
from ray_embed.encoder import EncoderSpec, lambdas, saved_graph
from ray_embed.encoder.keras_objects import finish_normalization, keras_family
from ray_embed.errors import InputError


@dataclass(frozen=True)
class Loaded:
    """A model that can be called.

    `call` takes (N, H, W, C) float32 and gives the model's outputs; `input_shape` is (H, W, C),
    each None where the model leaves it open; `model` is the Keras model, or None for a signature;
    `dtype` is the type of its input.
    """

    call: Callable[[Any], Any]
    input_shape: tuple[int | None, int | None, int | None]
    model: Any = None
    outer: Any = None
    dtype: str = "float32"


def load(spec: EncoderSpec) -> Loaded:
    """Load the model; weights are given by :func:`give_weights` once its variables exist.

    Raises:
        InputError: there is no such model, it is unsafe to load, or not of one input image.
    """
    for module in spec.imports:
        importing.import_module(module, f"--import {module}")
    if isinstance(spec.model, str) and not is_callable_reference(spec.model):
        path = Path(spec.model)
        if (path / "saved_model.pb").exists() and lambdas.saved_model_configs(path) is None:
            return _signature(path, spec)
        found = _from_file(path)
    elif isinstance(spec.model, str) or importing.makes(spec.model):
        found = importing.call(spec.model, spec.model_kwargs, "--model")
    else:
        found = spec.model
    model = find_model(found, spec)
    shape, dtype = _input_shape(model, spec), _input_dtype(model)
    return Loaded(
        lambda images: model(_in_range(images, dtype), training=False),
        shape,
        model,
        found if model is not found else None,
        dtype,
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


def give_weights(loaded: Loaded, spec: EncoderSpec) -> None:
    """Load `--weights` into the model; a subclassed one must have been called before.

    Raises:
        InputError: they do not fit, or the model takes none.
    """
    if spec.weights is None:
        return
    if loaded.model is None:
        raise InputError(
            f"--weights {spec.weights}: {spec.model_name} is a SavedModel without Keras layers, "
            "which holds its weights itself; leave --weights away"
        )
    from ray_embed.encoder.weights import load_weights

    load_weights(loaded.model, spec.weights, loaded.outer)


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


def _from_file(path: Path) -> Any:
    if not path.exists():
        raise InputError(
            f"--model {path}: no such file; give a .keras or .h5 file, a SavedModel folder, or "
            "module:callable"
        )
    if path.is_dir():
        configs = lambdas.saved_model_configs(path)
        if configs is None:
            raise InputError(f"--model {path}: a folder without saved_model.pb is no SavedModel")
        lambdas.refuse_lambdas(path, configs)
        saved_graph.refuse_reaching(path)
        return _load_keras_2(path)
    match path.suffix.lower():
        case ".keras":
            version, config = lambdas.keras_archive(path)
        case ".h5" | ".hdf5":
            version, config = lambdas.hdf5_model(path)
        case _:
            raise InputError(
                f"--model {path}: not a model; give a .keras or .h5 file, a SavedModel folder, or "
                "module:callable"
            )
    if version.startswith(("1.", "2.")):
        lambdas.refuse_lambdas(path, [config])
        return _load_keras_2(path)
    import keras

    return _loaded(path, lambda: keras.saving.load_model(path, compile=False, safe_mode=True))


def _load_keras_2(path: Path) -> Any:
    import tf_keras

    return _loaded(path, lambda: tf_keras.models.load_model(path, compile=False))


def _loaded(path: Path, load_model: Callable[[], Any]) -> Any:
    try:
        return load_model()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        mend = ""
        if "safe_mode" in text or "lambda" in text.lower():
            mend = (
                "\nPython code stored in a model file is not run; build the model in a function "
                "of yours and give --model module:callable with --weights"
            )
        elif "class" in text.lower() or "custom" in text.lower():
            mend = "\nlayers of your own: name the module that registers them with --import"
        raise InputError(f"--model {path}: cannot be loaded: {text[:1500]}{mend}") from error


def find_model(found: Any, spec: EncoderSpec) -> Any:
    """Give the Keras model that is asked for in what was loaded.

    Raises:
        InputError: there is none.
    """
    where = f"--model {spec.model_name}"
    inside = [name for name, value in _attributes(found).items() if keras_family(value)]
    if spec.submodel:
        model: Any = found
        for name in spec.submodel.split("."):
            model = getattr(model, name, None)
        if model is None:
            raise InputError(
                f"{where}: it has no attribute {spec.submodel!r}; "
                f"its attributes that are Keras models: {', '.join(inside) or 'none'}"
            )
        where = f"{where}, --submodel {spec.submodel}"
    else:
        model = found
    if not keras_family(model):
        mend = f"; name the one inside with --submodel: {', '.join(inside)}" if inside else ""
        raise InputError(f"{where}: it is {type(model).__name__}, a Keras model is needed{mend}")
    return model


def _attributes(value: Any) -> dict[str, Any]:
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _input_shape(model: Any, spec: EncoderSpec) -> tuple[int | None, int | None, int | None]:
    # A subclassed model has no inputs before, and no fixed ones after, it has been called.
    functional = bool(getattr(model, "_is_graph_network", False)) or _keras_3_functional(model)
    inputs = getattr(model, "inputs", None) if functional else None
    if not inputs:
        return (None, None, None)
    if len(inputs) > 1:
        names = ", ".join(f"{i.name.split(':')[0]} {tuple(i.shape)}" for i in inputs)
        raise InputError(
            f"--model {spec.model_name}: it has several inputs ({names}); an encoder takes one "
            "batch of images: wrap it in a model of one input"
        )
    return _image_shape(tuple(inputs[0].shape), spec)


def _keras_3_functional(model: Any) -> bool:
    # Keras 3's Sequential has `inputs` once it is built, its Functional always.
    return any(cls.__name__ in ("Functional", "Sequential") for cls in type(model).__mro__)


def _image_shape(
    shape: tuple[int | None, ...], spec: EncoderSpec
) -> tuple[int | None, int | None, int | None]:
    if len(shape) != 4:
        raise InputError(
            f"--model {spec.model_name}: its input has the shape {shape}; "
            "images (N, H, W, C) are needed"
        )
    return shape[1], shape[2], shape[3]


def _signature(path: Path, spec: EncoderSpec) -> Loaded:
    import tensorflow as tf

    saved_graph.refuse_reaching(path)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(f"--model {path}: cannot be loaded: {error}") from error
    names = list(loaded.signatures)
    name = "serving_default" if "serving_default" in names else next(iter(names), None)
    if name is None:
        raise InputError(
            f"--model {path}: a SavedModel without signatures; save it with Keras' "
            "model.export(folder), or with tf.saved_model.save(..., signatures=...)"
        )
    signature = loaded.signatures[name]
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1:
        raise InputError(
            f"--model {path}: its signature {name!r} has several inputs "
            f"({', '.join(sorted(inputs))}); an encoder takes one batch of images"
        )
    argument, tensor = next(iter(inputs.items()))
    shape = (None,) * 4 if tensor.shape.rank is None else tuple(tensor.shape)
    dtype = tensor.dtype.name
    return Loaded(
        lambda images: signature(**{argument: tf.cast(_in_range(images, dtype), dtype)}),
        _image_shape(shape, spec),
        # The signature lives as long as the object it came from.
        outer=loaded,
        dtype=dtype,
    )
