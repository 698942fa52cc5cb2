# SPDX-License-Identifier: Apache-2.0
"""Load a TensorFlow object-graph checkpoint into a Keras 3 or tf_keras model: all or nothing."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ray_embed.encoders.keras_compat import (
    POSITION,
    STRUCTURE,
    WEIGHTS_HINT,
    numpy_dtype,
    wanted_shape,
    weights_of,
)
from ray_embed.encoders.weights.checkpoint_matching import Match, match_variables
from ray_embed.encoders.weights.checkpoint_reader import Checkpoint, open_checkpoint
from ray_embed.encoders.weights.incomplete_checkpoints import describe_missing_lists
from ray_embed.errors import InputError

# Keys of a checkpoint that are not variables of models.
_OTHER_KEYS = re.compile(r"^_CHECKPOINTABLE_OBJECT_GRAPH$|(^|/)(save_counter|step|.*optimizer.*)/")


def load_checkpoint(
    prefix: str,
    display_name: str,
    model: Any,
    names: Sequence[str] = (),
    around: Sequence[Any] = (),
) -> None:
    """Set every weight of `model` from the checkpoint, or change nothing.

    Args:
        prefix: path of the checkpoint without `.index`.
        display_name: the name of the file in messages.
        model: a built Keras 3 or tf_keras model.
        names: the attribute names under which an outer object holds `model`.
        around: models that contain `model`. One of them may have been saved instead.

    Raises:
        InputError: the checkpoint cannot be read or does not belong to the model.
    """
    checkpoint = open_checkpoint(prefix, display_name)
    match = _find_match(checkpoint, model, names, around)
    # Read all values before the first is assigned: the last one may be damaged.
    values = [(variable, checkpoint.value(node)) for variable, node in match.pairs.values()]
    for variable, value in values:
        # Counters are int64 in Keras 2 and int32 in Keras 3, and half-precision files exist.
        variable.assign(value.astype(numpy_dtype(variable)))


def _find_match(
    checkpoint: Checkpoint, model: Any, names: Sequence[str], around: Sequence[Any]
) -> Match:
    """Return the only match of all the model's weights, trying the most likely places first."""
    wanted = weights_of(model)
    attempts = [(model, iter([[0]]))]
    if names:
        attempts.insert(0, (model, _levels(checkpoint, names)))
    attempts += [(outer, _levels(checkpoint)) for outer in around]
    attempts += [(model, _levels(checkpoint, ["model"])), (model, _levels(checkpoint))]
    tried: list[Match] = []
    for target, levels in attempts:
        match = _match_target(checkpoint, target, levels, wanted, tried if target is model else [])
        if match is not None:
            return match
    raise _mismatch(checkpoint, tried, model, wanted)


def _match_target(
    checkpoint: Checkpoint,
    target: Any,
    levels: Iterator[list[int]],
    wanted: Sequence[Any],
    tried: list[Match],
) -> Match | None:
    """Return the match of `target` with the node nearest to the root, or None if no node matches.

    Args:
        checkpoint: the file.
        target: the model, or a model that contains it.
        levels: the nodes to try, level by level.
        wanted: the weights of the model.
        tried: a list to which every match is appended.

    Raises:
        InputError: several nodes of a level match.
    """
    weights = weights_of(target)
    for level in levels:
        fitting: dict[frozenset[int], Match] = {}
        for start in level:
            match = Match()
            match_variables(checkpoint, target, start, match)
            tried.append(match)
            if match.fits(weights) and not match.missing(wanted):
                fitting.setdefault(match.nodes(), match)
        if len(fitting) > 1:
            keys = sorted(_first_key(checkpoint, match) for match in fitting.values())
            raise InputError(
                f"{checkpoint.display_name}: the model fits in more than one place of the file "
                f"({', '.join(keys)}); name the one with --submodel, or save it alone"
            )
        if fitting:
            return next(iter(fitting.values()))
    return None


def _levels(checkpoint: Checkpoint, names: Sequence[str] = ()) -> Iterator[list[int]]:
    """Yield nodes by their distance from the root; if `names` are given, only nodes so named.

    Layers listed by position are skipped: a model that equals the first layers of another model
    must not take that model's weights.
    """
    seen, level = {0}, [0]
    if not names:
        yield [0]
    while level:
        edges = [
            (name, child)
            for node in level
            for name, child in checkpoint.nodes[node].children.items()
            if not POSITION.fullmatch(name)
            and name not in STRUCTURE
            and checkpoint.nodes[child].children
        ]
        yield list(dict.fromkeys(child for name, child in edges if not names or name in names))
        level = list(dict.fromkeys(child for _, child in edges if child not in seen))
        seen.update(level)


def _mismatch(
    checkpoint: Checkpoint, tried: Sequence[Match], model: Any, wanted: Sequence[Any]
) -> InputError:
    """Return the error for the match that found the most variables of the model."""
    match = max(tried, key=lambda match: len(match.pairs))
    stored = sum(not _OTHER_KEYS.search(key) for key in checkpoint.shapes)
    reason = None if match.problems else describe_missing_lists(model, set(match.pairs), stored)
    if reason:
        return InputError(f"{checkpoint.display_name}: {reason}")
    missing = match.missing(wanted)
    reasons = {id(variable): reason for variable, reason in reversed(match.problems)}
    for variable in missing:
        reasons[id(variable)] = f"no value for {wanted_shape(variable)}, the file has no value"
    # Report the first faulty variable; problems not tied to a single variable come last.
    order = [id(variable) for variable in wanted if id(variable) in reasons] + list(reasons)
    count = f"{len(wanted) - len(missing)} of {len(wanted)} variables found"
    return InputError(f"{checkpoint.display_name}: {reasons[order[0]]} ({count}). {WEIGHTS_HINT}")


def _first_key(checkpoint: Checkpoint, match: Match) -> str:
    return min(checkpoint.nodes[node].key or "" for node in match.nodes())
