# SPDX-License-Identifier: Apache-2.0
"""Opens a SavedModel by one of its signatures: the one asked for, or the one that takes images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import is_callable_reference
from ray_embed.encoders import encoded_images, lambda_layers, unsafe_models
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError

# The likeliest first. TensorFlow 1 Hub modules have no tag for inference, and name the features of
# a classifier `image_feature_vector`.
_TAGS = (("serve",), ())
_SIGNATURES = ("serving_default", "image_feature_vector", "default")
# Which of several outputs a TensorFlow 1 Hub module is documented to give.
_MAIN_OUTPUT = "default"
_RESHAPE = "save it with Keras' model.export(folder), or with tf.saved_model.save(…, signatures=…)"


@dataclass(frozen=True)
class Opened:
    """A signature that can be called: with one argument, whose tensor is `tensor`.

    It lives as long as `loaded`.
    """

    function: Any
    argument: str
    tensor: Any
    loaded: Any
    main_output: str | None
    takes_bytes: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Choice:
    """A signature of one of a SavedModel's graphs."""

    tags: tuple[str, ...]
    name: str
    definition: Any
    graph: Any

    @property
    def rank(self) -> tuple[int, str, int, str]:
        """Where it stands: what is for training last, the usual names first."""
        return (
            _place(self.tags, _TAGS) + 10 * ("train" in self.tags),
            ",".join(self.tags),
            _place(self.name, _SIGNATURES),
            self.name,
        )


def _place(value: Any, order: Sequence[Any]) -> int:
    return order.index(value) if value in order else len(order)


def is_called_by_signature(spec: EncoderSpec) -> bool:
    """Return whether the model is a SavedModel to be called by a signature, not as a Keras model.

    Raises:
        InputError: a signature is asked for of something else.
    """
    asked = spec.tags is not None or spec.signature is not None
    if isinstance(spec.model, str) and not is_callable_reference(spec.model):
        path = Path(spec.model)
        if (path / "saved_model.pb").exists():
            return asked or lambda_layers.saved_model_configs(path) is None
    if asked:
        option = "--tags" if spec.signature is None else "--signature"
        raise InputError(
            f"{option}: it is for SavedModel folders, and --model {spec.model_name} is none"
        )
    return False


def open_signature(path: Path, tags: Iterable[str] | None, name: str | None) -> Opened:
    """Load a SavedModel, and take a signature of one image input.

    Args:
        path: the folder.
        tags: those of the graph to take; None for the graph that fits.
        name: that of the signature; None for the one that fits.

    Raises:
        InputError: it cannot be loaded, has no such tags or signature, or none that fits.
    """
    import tensorflow as tf

    unsafe_models.refuse_reaching(path)
    every = sorted(_choices(path), key=lambda choice: choice.rank)
    choice = _chosen(path, every, None if tags is None else tuple(sorted(tags)), name)
    try:
        loaded = tf.saved_model.load(str(path), tags=list(choice.tags))
    except Exception as error:
        raise InputError(f"--model {path}: cannot be loaded: {error}") from error
    function = loaded.signatures[choice.name]
    argument, tensor = next(iter(function.structured_input_signature[1].items()))
    outputs = choice.definition.outputs
    main = _MAIN_OUTPUT if len(outputs) > 1 and _MAIN_OUTPUT in outputs else None
    notes = _notes(every, choice, tags is None, name is None)
    if main is not None:
        notes.append(
            f"the signature {choice.name} has {len(outputs)} outputs: {main!r} is taken; others "
            "with --layer"
        )
    takes_bytes = tensor.dtype == tf.string
    if takes_bytes:
        notes.append(
            f"the signature {choice.name} takes the bytes of image files, and decodes and scales "
            "them itself"
        )
    return Opened(function, argument, tensor, loaded, main, takes_bytes, tuple(notes))


def _choices(path: Path) -> list[_Choice]:
    return [
        _Choice(tuple(sorted(graph.meta_info_def.tags)), name, definition, graph)
        for graph in unsafe_models.read_saved_model(path).meta_graphs
        for name, definition in graph.signature_def.items()
        # For loading alone.
        if not name.startswith("__saved_model_")
    ]


def _chosen(
    path: Path, every: list[_Choice], tags: tuple[str, ...] | None, name: str | None
) -> _Choice:
    if not every:
        raise InputError(f"--model {path}: a SavedModel without signatures; {_RESHAPE}")
    tagged = [choice for choice in every if tags in (None, choice.tags)]
    if not tagged:
        raise InputError(
            f"--tags {','.join(tags or ())!r}: the SavedModel {path} has no graph with these tags; "
            f"it has {_tag_sets(every)}"
        )
    named = [choice for choice in tagged if name in (None, choice.name)]
    if not named:
        raise InputError(
            f"--signature {name}: the SavedModel {path} has no such signature; it has "
            f"{', '.join(_names(tagged))}"
        )
    problems = [(choice, _problem(choice)) for choice in named]
    fitting = [choice for choice, problem in problems if problem is None]
    if fitting:
        # Images rather than the bytes of files: those are decoded here as Keras does.
        return min(fitting, key=lambda choice: _takes_bytes(choice.definition))
    unlike = dict.fromkeys(f"its signature {c.name!r} {problem}" for c, problem in problems)
    raise InputError(
        f"--model {path}: {'; '.join(unlike)}; an encoder takes one batch of images (N, H, W, C): "
        f"{_RESHAPE}"
    )


def _takes_bytes(definition: Any) -> bool:
    import tensorflow as tf

    return any(tf.as_dtype(tensor.dtype) == tf.string for tensor in definition.inputs.values())


def _problem(choice: _Choice) -> str | None:
    """Say why a signature cannot be an encoder of images; None where it may be one."""
    import tensorflow as tf

    definition = choice.definition
    if len(definition.inputs) != 1:
        names = ", ".join(sorted(definition.inputs)) or "none"
        return f"has several inputs ({names})" if definition.inputs else "has no inputs"
    tensor = next(iter(definition.inputs.values()))
    dtype = tf.as_dtype(tensor.dtype)
    rank = None if tensor.tensor_shape.unknown_rank else len(tensor.tensor_shape.dim)
    if dtype == tf.string:
        reason = encoded_images.foreign_operation(choice.graph, tensor.name)
        if reason is None and rank not in (None, 0, 1):
            reason = f"has {rank} axes"
        return reason and f"takes a string that is no image file: its graph {reason}"
    if not (dtype.is_floating or dtype.is_integer):
        return f"takes {dtype.name}"
    if rank not in (None, 4):
        sides = tuple(None if side.size < 0 else side.size for side in tensor.tensor_shape.dim)
        return f"takes an input of the shape {sides}"
    return None


def _notes(every: list[_Choice], choice: _Choice, any_tags: bool, any_name: bool) -> list[str]:
    """Say which graph and signature were taken, where there was a choice."""
    parts, options = [], []
    names = _names([other for other in every if other.tags == choice.tags])
    if any_tags and len({other.tags for other in every}) > 1:
        parts.append(f"the tags {_braced(choice.tags)} of {_tag_sets(every)}")
        options.append("--tags")
    if any_name and len(names) > 1:
        parts.append(f"the signature {choice.name} of {', '.join(names)}")
        options.append("--signature")
    if not parts:
        return []
    return [f"of the SavedModel, {' and '.join(parts)} are used; others with {', '.join(options)}"]


def _names(choices: Iterable[_Choice]) -> list[str]:
    return list(dict.fromkeys(choice.name for choice in choices))


def _tag_sets(choices: Iterable[_Choice]) -> str:
    return ", ".join(dict.fromkeys(_braced(choice.tags) for choice in choices))


def _braced(tags: Iterable[str]) -> str:
    return "{" + ", ".join(tags) + "}"
