# SPDX-License-Identifier: Apache-2.0
"""Load weights from a file into a module of PyTorch, all of them or none, or make random ones."""

import contextlib
import importlib.util
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_embed.core.arrays import Array
from ray_embed.encoders.model_errors import quote_error
from ray_embed.errors import InputError

StateDict = dict[str, Any]

# Where checkpoints of trainings keep the state dict.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "network")
# What wrappers of a module put before the names of its weights.
_PREFIXES = ("module.", "model.", "encoder.", "_orig_mod.")
# Counts the batches of a training. Old files lack it, and nothing depends on it in eval mode.
_COUNTER = "num_batches_tracked"
_SEED = 0


# --- files ---------------------------------------------------------------------------------------


def load_weights(modules: Sequence[Any], path: str, where: str, part: str = "") -> list[str]:
    """Load a state dict into the first of several modules that it fits, and return notes.

    Args:
        modules: the encoder, and what contains it.
        path: a file with a state dict, or with a checkpoint that holds one.
        where: what error messages call the model.
        part: what the names of the encoder's weights begin with if the file has those of more.

    Raises:
        InputError: the file is missing, damaged or unsafe to read, or it fits none of the modules.
            These are unchanged then.
    """
    values, notes = _read(Path(path))
    for module in modules:
        for note, candidate in _list_candidates(values, part):
            if _find_difference(module, candidate) is None:
                module.load_state_dict(_complete(module, candidate))
                return [*notes, note] if note else notes
    # The shortest names are probably the ones that were meant.
    candidates = [candidate for _, candidate in _list_candidates(values, part)]
    names = modules[0].state_dict().keys()
    closest = max(candidates, key=lambda candidate: len(candidate.keys() & names))
    difference = _find_difference(modules[0], closest)
    raise InputError(f"--weights {path}: it does not fit {where}: {difference}")


def _list_candidates(values: StateDict, part: str) -> Iterator[tuple[str, StateDict]]:
    """Yield what may be meant by a state dict, each after a note on it."""
    for prefix, whole in _without_prefixes(values):
        inside = {k.removeprefix(part): v for k, v in whole.items() if k.startswith(part)}
        if part and inside:
            begin = f"{prefix}{part}"
            yield f"--weights: the weights whose names begin with {begin!r} are taken", inside
        else:
            note = f"--weights: the names of all weights begin with {prefix!r}"
            yield note if prefix else "", whole


def _without_prefixes(values: StateDict) -> Iterator[tuple[str, StateDict]]:
    """Yield a state dict, and the same without the prefixes that all of its names have."""
    removed = ""
    while True:
        yield removed, values
        prefix = next((each for each in _PREFIXES if all(k.startswith(each) for k in values)), None)
        if prefix is None or not values:
            return
        removed += prefix
        values = {name.removeprefix(prefix): value for name, value in values.items()}


def _complete(module: Any, values: StateDict) -> StateDict:
    counters = {name: v for name, v in module.state_dict().items() if name.endswith(_COUNTER)}
    return counters | values


def _find_difference(module: Any, values: StateDict) -> str | None:
    """Return how a state dict differs from that of a module, or None if it fits."""
    expected, values = module.state_dict(), _complete(module, values)
    missing = [name for name in expected if name not in values]
    unexpected = [name for name in values if name not in expected]
    if missing or unexpected:
        found = []
        if missing:
            shape = _shape(expected[missing[0]])
            found.append(f"it lacks {missing[0]!r} {shape}{_and_others(missing)}")
        if unexpected:
            shape = _shape(values[unexpected[0]])
            found.append(f"the model has no {unexpected[0]!r} {shape}{_and_others(unexpected)}")
        return "; ".join(found)
    for name, value in expected.items():
        if _shape(value) != _shape(values[name]):
            return f"{name!r} has the shape {_shape(values[name])} instead of {_shape(value)}"
    return None


def _and_others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} others" if len(names) > 1 else ""


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _read(path: Path) -> tuple[StateDict, list[str]]:
    """Return the state dict in a file, and notes.

    Raises:
        InputError: the file is missing, damaged, or in another format.
    """
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file; check the path")
    with path.open("rb") as file:
        start = file.read(10)
    content = _read_safetensors(path) if start[8:] == b'{"' else _read_pickle(path)
    if _is_state_dict(content):
        return dict(content), []
    found = [name for name in _INSIDE if isinstance(content, dict) and name in content]
    fitting = [name for name in found if _is_state_dict(content[name])]
    if not fitting:
        kind = (
            f"a dict with {', '.join(map(str, list(content)[:8]))}"
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise InputError(
            f"--weights {path}: it holds {kind}, and no state dict; save that alone: "
            "torch.save(model.state_dict(), path)"
        )
    return dict(content[fitting[0]]), [
        f"--weights: the file is a checkpoint of a training, and its {fitting[0]!r} is taken"
    ]


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def _read_safetensors(path: Path) -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise InputError(
            f"--weights {path}: files in this format need a package: pip install safetensors"
        )
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise InputError(f"--weights {path}: it is damaged: {quote_error(error)[:300]}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--weights {path}: reading it would run code, or it is no file of PyTorch; a file of "
            "weights holds tensors only: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:
        raise InputError(
            f"--weights {path}: PyTorch cannot read weights from it: {quote_error(error)[:300]}; "
            "give a file of torch.save(model.state_dict(), path), or a .safetensors file"
        ) from error


# --- values --------------------------------------------------------------------------------------


def give_random_weights(module: Any, where: str) -> None:
    """Initialize the weights of a module with a fixed seed.

    Raises:
        InputError: a part of it with weights cannot initialize them.
    """
    resets = {name: _find_reset(part) for name, part in module.named_modules()}
    parts = dict(module.named_modules())
    without = [
        f"{name or 'itself'} ({type(parts[name]).__name__})"
        for name, reset in resets.items()
        if reset is None and list(parts[name].parameters(recurse=False))
    ]
    if without:
        raise InputError(
            f"--weights random: these parts of {where} have weights, and no reset_parameters "
            f"that initializes them: {', '.join(without[:8])}; add that method"
        )
    with fix_seed(), torch.no_grad():
        for reset in resets.values():
            if reset is not None:
                reset()


@contextlib.contextmanager
def fix_seed() -> Iterator[None]:
    """Let random weights be the same each time, and leave the user's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def _find_reset(part: Any) -> Any:
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(reset := getattr(part, name, None)):
            return reset
    return None


def get_values(module: Any) -> tuple[Array, ...]:
    """Return the values of the state dict of a module, in its order."""
    return tuple(value.detach().cpu().numpy().copy() for value in module.state_dict().values())


def set_values(module: Any, values: Sequence[Array]) -> None:
    """Set the state dict of a module.

    Raises:
        InputError: the number or the shapes of the values differ from the module's.
    """
    state = module.state_dict()
    shapes, saved = [tuple(v.shape) for v in state.values()], [v.shape for v in values]
    if shapes != saved:
        raise InputError(
            "the model is not the one that this run folder was started with: its weights have "
            "other shapes; give another --out, or --overwrite to start again"
        )
    tensors = (torch.from_numpy(np.array(value)) for value in values)
    module.load_state_dict(dict(zip(state, tensors, strict=True)))
