# SPDX-License-Identifier: Apache-2.0
"""Load SavedModels called by a signature: the requested one, or the one that takes images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import is_callable_reference
from ray_embed.encoders import lambda_layers
from ray_embed.encoders.encoded_images import call_with_contents, decodes_images
from ray_embed.encoders.forms.base import Form
from ray_embed.encoders.input_layout import layout_of_shape
from ray_embed.encoders.loaded_model import LoadedModel, as_model_input
from ray_embed.encoders.saved_model_graph import read_saved_model
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.unsafe_models import refuse_unsafe_operations
from ray_embed.errors import InputError

# Most likely first. TensorFlow 1 Hub modules have no tag for inference, and a classifier's
# signature for features is `image_feature_vector`.
_TAGS = (("serve",), ())
_SIGNATURES = ("serving_default", "image_feature_vector", "default")
# The documented main output of TensorFlow 1 Hub modules with several outputs.
_MAIN_OUTPUT = "default"
_SAVE_AGAIN = (
    "save it with Keras' model.export(folder), or with tf.saved_model.save(…, signatures=…)"
)


@dataclass(frozen=True)
class _Choice:
    """A signature of one of a SavedModel's graphs."""

    tags: tuple[str, ...]
    name: str
    definition: Any
    graph: Any

    @property
    def rank(self) -> tuple[int, str, int, str]:
        """Return a sort key: graphs for training last, the usual names first."""
        return (
            _position(self.tags, _TAGS) + 10 * ("train" in self.tags),
            ",".join(self.tags),
            _position(self.name, _SIGNATURES),
            self.name,
        )


def _position(value: Any, order: Sequence[Any]) -> int:
    return order.index(value) if value in order else len(order)


def _matches(spec: EncoderSpec) -> bool:
    """Return whether the model is a SavedModel to be called by a signature, not by its layers.

    Raises:
        InputError: a signature is requested for a model in another form.
    """
    requested = spec.tags is not None or spec.signature is not None
    if isinstance(spec.model, str) and not is_callable_reference(spec.model):
        path = Path(spec.model)
        if (path / "saved_model.pb").exists():
            return requested or lambda_layers.saved_model_configs(path) is None
    if requested:
        option = "--tags" if spec.signature is None else "--signature"
        raise InputError(
            f"{option}: it is for SavedModel folders, and --model {spec.model_name} is none"
        )
    return False


def _load(spec: EncoderSpec) -> LoadedModel:
    """Load a SavedModel, and return its signature that takes one image input.

    Raises:
        InputError: the SavedModel is unsafe, cannot be loaded, or has no such signature.
    """
    import tensorflow as tf

    path = Path(spec.model)
    refuse_unsafe_operations(path)
    choices = sorted(_read_choices(path), key=lambda choice: choice.rank)
    choice = _choose(path, choices, spec)
    try:
        loaded = tf.saved_model.load(str(path), tags=list(choice.tags))
    except Exception as error:
        raise InputError(f"--model {path}: cannot be loaded: {error}") from error
    outputs = choice.definition.outputs
    main = _MAIN_OUTPUT if len(outputs) > 1 and _MAIN_OUTPUT in outputs else None
    notes = tuple(_describe_choice(choices, choice, spec, main))
    return _wrap_signature(loaded, choice, spec, main, notes)


def _wrap_signature(
    loaded: Any, choice: _Choice, spec: EncoderSpec, main: str | None, notes: tuple[str, ...]
) -> LoadedModel:
    import tensorflow as tf

    function = loaded.signatures[choice.name]
    argument, tensor = next(iter(function.structured_input_signature[1].items()))
    if tensor.dtype == tf.string:
        return LoadedModel(
            call=lambda contents: call_with_contents(function, argument, contents),
            input_shape=(None, None, None),
            outer=loaded,
            main_output=main,
            notes=notes,
            dtype="string",
        )
    shape = (None,) * 4 if tensor.shape.rank is None else tuple(tensor.shape)
    dtype = tensor.dtype.name
    image_shape, channels_first = layout_of_shape(shape, spec)

    def call(images: Any) -> Any:
        pixels = as_model_input(images, channels_first, dtype)
        return function(**{argument: tf.cast(pixels, dtype)})

    return LoadedModel(
        call=call,
        input_shape=image_shape,
        signature=function,
        # The signature lives only as long as the object that it comes from.
        outer=loaded,
        dtype=dtype,
        main_output=main,
        notes=notes,
        channels_first=channels_first,
    )


# --- the choice of a signature -------------------------------------------------------------------


def _read_choices(path: Path) -> list[_Choice]:
    return [
        _Choice(tuple(sorted(graph.meta_info_def.tags)), name, definition, graph)
        for graph in read_saved_model(path).meta_graphs
        for name, definition in graph.signature_def.items()
        # TensorFlow uses these to load the model.
        if not name.startswith("__saved_model_")
    ]


def _choose(path: Path, choices: list[_Choice], spec: EncoderSpec) -> _Choice:
    tags = None if spec.tags is None else tuple(sorted(spec.tags))
    if not choices:
        raise InputError(f"--model {path}: a SavedModel without signatures; {_SAVE_AGAIN}")
    tagged = [choice for choice in choices if tags in (None, choice.tags)]
    if not tagged:
        raise InputError(
            f"--tags {','.join(tags or ())!r}: the SavedModel {path} has no graph with these tags; "
            f"it has {_tag_sets(choices)}"
        )
    named = [choice for choice in tagged if spec.signature in (None, choice.name)]
    if not named:
        raise InputError(
            f"--signature {spec.signature}: the SavedModel {path} has no such signature; it has "
            f"{', '.join(_names(tagged))}"
        )
    problems = [(choice, _find_problem(choice)) for choice in named]
    fitting = [choice for choice, problem in problems if problem is None]
    if fitting:
        # Prefer images to the bytes of files, because ray_embed decodes files as Keras does.
        return min(fitting, key=lambda choice: _takes_bytes(choice.definition))
    reasons = dict.fromkeys(f"its signature {c.name!r} {problem}" for c, problem in problems)
    raise InputError(
        f"--model {path}: {'; '.join(reasons)}; an encoder takes one batch of images (N, H, W, C): "
        f"{_SAVE_AGAIN}"
    )


def _takes_bytes(definition: Any) -> bool:
    import tensorflow as tf

    return any(tf.as_dtype(tensor.dtype) == tf.string for tensor in definition.inputs.values())


def _find_problem(choice: _Choice) -> str | None:
    """Return why a signature cannot be an encoder of images, or None if it may be one."""
    import tensorflow as tf

    definition = choice.definition
    if len(definition.inputs) != 1:
        names = ", ".join(sorted(definition.inputs)) or "none"
        return f"has several inputs ({names})" if definition.inputs else "has no inputs"
    tensor = next(iter(definition.inputs.values()))
    dtype = tf.as_dtype(tensor.dtype)
    rank = None if tensor.tensor_shape.unknown_rank else len(tensor.tensor_shape.dim)
    if dtype == tf.string:
        if not decodes_images(choice.graph, definition):
            return "takes a string that is no image file: its graph decodes no image"
        return None if rank in (None, 0, 1) else f"takes a string of {rank} axes"
    if not (dtype.is_floating or dtype.is_integer):
        return f"takes {dtype.name}"
    if rank not in (None, 4):
        sides = tuple(None if side.size < 0 else side.size for side in tensor.tensor_shape.dim)
        return f"takes an input of the shape {sides}"
    return None


def _describe_choice(
    choices: list[_Choice], choice: _Choice, spec: EncoderSpec, main: str | None
) -> list[str]:
    """Return notes on the graph, signature and output that were chosen from several."""
    notes = _describe_alternatives(choices, choice, spec)
    if main is not None:
        notes.append(
            f"the signature {choice.name} has {len(choice.definition.outputs)} outputs: {main!r} "
            "is taken; others with --layer"
        )
    if _takes_bytes(choice.definition):
        notes.append(
            f"the signature {choice.name} takes the bytes of image files, and decodes and scales "
            "them itself"
        )
    return notes


def _describe_alternatives(choices: list[_Choice], choice: _Choice, spec: EncoderSpec) -> list[str]:
    parts, options = [], []
    names = _names([other for other in choices if other.tags == choice.tags])
    if spec.tags is None and len({other.tags for other in choices}) > 1:
        parts.append(f"the tags {_braced(choice.tags)} of {_tag_sets(choices)}")
        options.append("--tags")
    if spec.signature is None and len(names) > 1:
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


FORM = Form(matches=_matches, load=_load)
