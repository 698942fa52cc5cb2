# SPDX-License-Identifier: Apache-2.0
"""Loads a TensorFlow object-graph checkpoint into a Keras 3 or tf_keras model: all or nothing."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ray_embed.encoders.keras_compat import (
    MEND,
    POSITION,
    STRUCTURE,
    numpy_dtype,
    wanted_shape,
    weights_of,
)
from ray_embed.encoders.weights.checkpoint_matching import Match, bind
from ray_embed.encoders.weights.checkpoint_reader import Checkpoint, open_checkpoint
from ray_embed.encoders.weights.untracked import left_out_by_keras
from ray_embed.errors import InputError

# What a checkpoint holds beside the variables of models.
_BESIDE = re.compile(r"^_CHECKPOINTABLE_OBJECT_GRAPH$|(^|/)(save_counter|step|.*optimizer.*)/")


def load_checkpoint(
    prefix: str, shown: str, model: Any, names: Sequence[str] = (), around: Sequence[Any] = ()
) -> None:
    """Give every weight of `model` its value from the checkpoint, or change nothing.

    Args:
        prefix: path of the checkpoint without `.index`.
        shown: the file's name for messages.
        model: a built Keras 3 or tf_keras model.
        names: the attribute names under which an outer object holds `model`.
        around: models that contain `model`, one of which may have been saved instead.

    Raises:
        InputError: the checkpoint cannot be read or does not belong to the model.
    """
    checkpoint = open_checkpoint(prefix, shown)
    match = _find(checkpoint, model, names, around)
    # All are read before the first is assigned: damage may show only in the last one.
    values = [(variable, checkpoint.value(node)) for variable, node in match.found.values()]
    for variable, value in values:
        # Counters are int64 in Keras 2 and int32 in Keras 3, and half-precision files exist.
        variable.assign(value.astype(numpy_dtype(variable)))


def _find(checkpoint: Checkpoint, model: Any, names: Sequence[str], around: Sequence[Any]) -> Match:
    """The only match of all of the model's weights, looked for in the likeliest places first."""
    wanted = weights_of(model)
    tried: list[Match] = []

    def attempt(target: Any, weights: Sequence[Any], starts: Iterator[list[int]]) -> Match | None:
        for level in starts:
            fitting: dict[frozenset[int], Match] = {}
            for start in level:
                match = Match()
                bind(checkpoint, target, start, match)
                if target is model:
                    tried.append(match)
                if match.fits(weights) and not match.missing(wanted):
                    fitting.setdefault(match.nodes(), match)
            if len(fitting) > 1:
                keys = sorted(_first_key(checkpoint, match) for match in fitting.values())
                raise InputError(
                    f"{checkpoint.shown}: the model fits in more than one place of the file "
                    f"({', '.join(keys)}); name the one with --submodel, or save it alone"
                )
            if fitting:
                return next(iter(fitting.values()))
        return None

    found = attempt(model, wanted, _levels(checkpoint, names)) if names else None
    found = found or attempt(model, wanted, iter([[0]]))
    for outer in around:
        found = found or attempt(outer, weights_of(outer), _levels(checkpoint))
    found = found or attempt(model, wanted, _levels(checkpoint, ["model"]))
    found = found or attempt(model, wanted, _levels(checkpoint))
    if found is None:
        # The place where most of the model was found tells best what is wrong.
        best = max(tried, key=lambda match: len(match.found))
        stored = sum(not _BESIDE.search(key) for key in checkpoint.shapes)
        reason = None if best.problems else left_out_by_keras(model, set(best.found), stored)
        if reason:
            raise InputError(f"{checkpoint.shown}: {reason}")
        raise _mismatch(checkpoint, best, wanted)
    return found


def _levels(checkpoint: Checkpoint, names: Sequence[str] = ()) -> Iterator[list[int]]:
    """Nodes by distance from the root, only those under one of `names` if given.

    Layers by position are not entered: a model that happens to equal the first layers of another
    must not take its weights.
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


def _mismatch(checkpoint: Checkpoint, match: Match, wanted: Sequence[Any]) -> InputError:
    missing = match.missing(wanted)
    reasons = {id(variable): reason for variable, reason in reversed(match.problems)}
    for variable in missing:
        reasons[id(variable)] = f"no value for {wanted_shape(variable)}, the file has no value"
    # The model's first variable at fault; what is not about one variable comes last.
    order = [id(variable) for variable in wanted if id(variable) in reasons] + list(reasons)
    count = f"{len(wanted) - len(missing)} of {len(wanted)} variables found"
    return InputError(f"{checkpoint.shown}: {reasons[order[0]]} ({count}). {MEND}")


def _first_key(checkpoint: Checkpoint, match: Match) -> str:
    return min(checkpoint.nodes[node].key or "" for node in match.nodes())
