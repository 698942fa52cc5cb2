# SPDX-License-Identifier: Apache-2.0
"""Loads weights from a file into a model: all of them or none."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_embed.encoder import tf_checkpoint
from ray_embed.encoder.tf_checkpoint import MEND, keras_family, variable_path
from ray_embed.errors import InputError

ACCEPTED = (
    "accepted are .weights.h5, .h5 and .keras files, and TensorFlow checkpoints: the path without "
    ".index, or the folder that holds it"
)


def load_weights(model: Any, weights: str, outer: Any | None = None) -> None:
    """Gives every weight of `model` its value from a file; on an error nothing is changed.

    Args:
        model: a Keras 3 or tf_keras model whose variables exist.
        weights: path of a `.weights.h5`, `.h5` or `.keras` file, prefix of a TensorFlow
            checkpoint, or a folder with one.
        outer: the object that holds `model` as an attribute, if any. The file may have been saved
            from it: the weights go into it where only that fits.

    Raises:
        InputError: the file is missing, damaged, of another kind, or does not belong to the model:
            a variable has no value or one of another shape, or the file has more layers.
    """
    if not _weights_of(model):
        raise InputError(
            f"{weights}: the model has no variables to load into; build it or call it once"
        )
    if Path(weights).is_file() and weights.endswith((".h5", ".keras")):
        _load_h5(model, weights, outer)
    else:
        prefix = find_checkpoint(weights)
        names = [name for name, value in _attributes(outer) if value is model]
        around = _models_around(model, outer)
        with _plain_prefix(prefix) as plain:
            tf_checkpoint.load_checkpoint(plain, weights, model, names, around)
    _finish_normalization([model, *_models_around(model, outer)])


def find_checkpoint(weights: str) -> str:
    """The prefix of the TensorFlow checkpoint that `weights` means.

    Raises:
        InputError: there is none, or there are several.
    """
    folder = Path(weights)
    if Path(f"{weights}.index").is_file():
        return weights
    if not folder.exists():
        raise InputError(f"{weights}: no such file, folder or checkpoint; {ACCEPTED}")
    if not folder.is_dir():
        raise InputError(f"{weights}: not a file of weights; {ACCEPTED}")
    if (folder / ".index").is_file():
        return f"{folder}/"
    recorded = _recorded_checkpoint(folder)
    if recorded and (folder / f"{recorded}.index").is_file():
        return str(folder / recorded)
    found = sorted(str(path).removesuffix(".index") for path in folder.glob("*.index"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{weights}: no checkpoint (*.index) in this folder; {ACCEPTED}")
    raise InputError(
        f"{weights}: several checkpoints in this folder; give one of {', '.join(found)}"
    )


def _recorded_checkpoint(folder: Path) -> str:
    """The base name of the newest checkpoint by the state file: the folder may have moved."""
    import tensorflow as tf

    try:
        state = tf.train.get_checkpoint_state(str(folder))
    except ValueError:  # not text, or without a path; what else is wrong with it gives None
        return ""
    return re.split(r"[/\\]", state.model_checkpoint_path)[-1] if state else ""


@contextlib.contextmanager
def _plain_prefix(prefix: str) -> Iterator[str]:
    """The prefix, or links to its files if TensorFlow would take its name for a pattern."""
    if not re.search(r"[*?\[\]\\]", prefix):
        yield prefix
        return
    folder, _, base = prefix.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="ray_embed_weights_") as scratch:
        for path in Path(folder or ".").iterdir():
            if path.name == f"{base}.index" or path.name.startswith(f"{base}.data-"):
                Path(scratch, f"linked{path.name.removeprefix(base)}").symlink_to(path.resolve())
        yield f"{scratch}/linked"


# --- HDF5 ----------------------------------------------------------------------------------------


def _load_h5(model: Any, weights: str, outer: Any | None) -> None:
    errors: list[InputError] = []
    with _plain_h5(weights) as (path, count):
        for target in (model, *_models_around(model, outer)):
            try:
                ordered = path if count is not None else _in_order_of(target, path, weights)
                _load_by_keras(target, ordered, count, weights)
                return
            except InputError as error:
                errors.append(error)
    raise errors[0]  # that of the model itself


@contextlib.contextmanager
def _plain_h5(weights: str) -> Iterator[tuple[str, int | None]]:
    """A path to the weights whose ending tells their layout, and how many values they hold.

    Keras goes by the ending, but Keras 2 wrote its older layout to `x.weights.h5` too. The number
    is None for the older layout, which Keras checks itself.
    """
    import h5py

    with tempfile.TemporaryDirectory(prefix="ray_embed_weights_") as scratch:
        source = Path(weights).resolve()
        if weights.endswith(".keras"):
            source = _unpacked(weights, Path(scratch))
        try:
            with h5py.File(source, "r") as file:
                older = "layer_names" in file.attrs or "model_weights" in file
                count = None if older else _count_values(file)
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError for damage
            raise InputError(f"{weights}: not a readable HDF5 file ({_line(error)})") from error
        link = Path(scratch, "older.h5" if older else "newer.weights.h5")
        link.symlink_to(source)
        yield str(link), count


def _unpacked(weights: str, scratch: Path) -> Path:
    """The weights of a `.keras` file; its config and anything else in it are not looked at."""
    path = scratch / "unpacked.h5"
    try:
        with (
            zipfile.ZipFile(weights) as archive,
            archive.open("model.weights.h5") as packed,
            path.open("wb") as out,
        ):
            shutil.copyfileobj(packed, out)
    except KeyError as error:
        raise InputError(f"{weights}: holds no model.weights.h5; save the model anew") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
        raise InputError(f"{weights}: not a readable .keras file ({_line(error)})") from error
    return path


def _count_values(file: Any) -> int:
    """How many variables of the model itself a file of the newer layout holds, scalars left out.

    Metrics that the model keeps as attributes are in the file too; most of their values are scalar.
    """
    import h5py

    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        aside = parts[0] == "metrics" or any(
            "optimizer" in part or part == "seed_generator" for part in parts
        )
        if isinstance(item, h5py.Dataset) and item.ndim and "vars" in parts and not aside:
            names.append(name)

    file.visititems(visit)
    return len(names)


def _in_order_of(target: Any, path: str, weights: str) -> str:
    """An older-layout file whose values within each layer are in the order of `target`.

    Keras pairs them by order, trainable ones first. So a nested model that was partly frozen when
    saved and is not when loaded, or the other way round, would get values of equal shapes swapped.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            orders = _orders_for(
                target, file if "layer_names" in file.attrs else file["model_weights"]
            )
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError for damage
        raise InputError(f"{weights}: not a readable HDF5 file ({_line(error)})") from error
    if not orders:
        return path
    copy = Path(path).with_name("ordered.h5")
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        for group, order in orders.items():
            file[group].attrs["weight_names"] = [name.encode() for name in order]
    return str(copy)


def _orders_for(target: Any, root: Any) -> dict[str, list[str]]:
    """The groups of the file whose values are in another order than the layer's variables."""
    saved = [root[_text(name)] for name in root.attrs.get("layer_names", ())]
    groups = [group for group in saved if len(group.attrs.get("weight_names", ()))]
    layers = [layer for layer in target.layers if _weights_of(layer)]
    if len(groups) != len(layers):
        return {}  # Keras says what is wrong
    orders = {}
    for layer, group in zip(layers, groups, strict=True):
        names = [_text(name) for name in group.attrs["weight_names"]]
        order = _order_by_name(layer, names)
        if order != names:
            orders[str(group.name)] = order
    return orders


def _order_by_name(layer: Any, names: list[str]) -> list[str]:
    """The names in the order in which Keras pairs them with the layer's variables, if they tell."""
    paths = [variable_path(v) for v in (*layer.trainable_weights, *layer.non_trainable_weights)]
    for depth in (2, 3, 4):
        wanted, have = _ranked(paths, depth), _ranked(names, depth)
        if len(set(have)) == len(names) and sorted(wanted) == sorted(have):
            known = dict(zip(have, names, strict=True))
            return [known[key] for key in wanted]
    return names


def _ranked(paths: Sequence[str], depth: int) -> list[tuple[tuple[str, int], ...]]:
    """The last parts of each path, numbers replaced by ranks: dense_7, dense_9 as dense, dense_1.

    The numbers that Keras gives differ between programs; their order is that of creation.
    """
    split = [
        [(part.rstrip("0123456789"), part) for part in path.partition(":")[0].split("/")[-depth:]]
        for path in paths
    ]
    parts = {part for path in split for part in path}

    def rank(stem: str, name: str) -> int:
        numbers = sorted(
            int(other[len(kind) :] or 0)
            for kind, other in parts
            if kind.rstrip("_") == stem.rstrip("_")
        )
        return numbers.index(int(name[len(stem) :] or 0))

    return [tuple((stem.rstrip("_"), rank(stem, name)) for stem, name in path) for path in split]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _load_by_keras(target: Any, path: str, count: int | None, weights: str) -> None:
    """Lets Keras load the file into `target`, then looks whether each variable got its value.

    Keras may leave variables untouched without an error, so they are filled with marks before.
    """
    variables = _weights_of(target)
    arrays = [variable for variable in variables if len(variable.shape)]
    if count is not None and count > len(arrays):
        last = f", the last {variable_path(arrays[-1])} {tuple(arrays[-1].shape)}" if arrays else ""
        raise InputError(
            f"{weights}: the file is of a model with more layers: it has {count} arrays, the "
            f"model {target.name} wants {len(arrays)}{last}. {MEND}"
        )
    before = [_to_numpy(variable) for variable in variables]
    reason = ""
    try:
        for variable, old in zip(variables, before, strict=True):
            variable.assign(_marked(old))
        target.load_weights(path)
    except Exception as error:  # Keras raises ValueError, KeyError, OSError and more here
        reason = str(error)
    untouched = [
        variable
        for variable, old in zip(variables, before, strict=True)
        if _is_marked(_to_numpy(variable), old)
    ]
    if not reason and not untouched:
        return
    for variable, old in zip(variables, before, strict=True):
        variable.assign(old)
    raise _h5_error(weights, untouched or variables, reason)


def _h5_error(weights: str, untouched: Sequence[Any], reason: str) -> InputError:
    """Names the first variable at fault, with both shapes if Keras tells them."""
    reason = " ".join(reason.partition("Target variable:")[0].split())[:400]
    shapes = [
        tuple(int(size) for size in re.findall(r"\d+", text))
        for text in re.findall(r"\((?:\d+,?\s*)*\)", reason)
    ]
    for variable in untouched:
        wanted = tuple(variable.shape)
        if wanted in shapes[:-1]:
            stored = f"the file has {shapes[shapes.index(wanted) + 1]}"
            break
    else:
        variable, stored = untouched[0], "it got no value from the file"
    wanted = tuple(variable.shape)
    detail = f" ({reason.rstrip('. ')})" if reason else ""
    return InputError(
        f"{weights}: {variable_path(variable)}: the model wants shape {wanted}, {stored}{detail}. "
        f"{MEND}"
    )


# --- variables -----------------------------------------------------------------------------------


def _weights_of(model: Any) -> list[Any]:
    try:
        return list(model.weights)
    except ValueError:  # a tf_keras model that was never called
        return []


def _models_around(model: Any, outer: Any | None) -> list[Any]:
    """The Keras models at hand that contain all of `model`: outer itself, or attributes of it."""
    wanted = {id(variable) for variable in _weights_of(model)}
    return [
        value
        for value in (outer, *(value for _, value in _attributes(outer)))
        if value is not model
        and keras_family(value)
        and hasattr(value, "load_weights")
        and wanted <= {id(variable) for variable in _weights_of(value)}
    ]


def _attributes(outer: Any | None) -> list[tuple[str, Any]]:
    return list(getattr(outer, "__dict__", {}).items())


def _to_numpy(variable: Any) -> Any:
    """A copy, not a view: the variable is written to afterwards."""
    import numpy as np

    return np.array(variable.numpy())


def _marked(old: Any) -> Any:
    """An array like `old` filled with what no trained weight is."""
    import numpy as np

    if old.dtype == bool:
        return old
    mark = np.iinfo(old.dtype).min if np.issubdtype(old.dtype, np.integer) else np.nan
    return np.full(old.shape, mark, old.dtype)


def _is_marked(value: Any, old: Any) -> bool:
    import numpy as np

    if value.size == 0 or value.dtype == bool:
        return False
    mark = _marked(old)
    return bool(np.all((value == mark) | ((value != value) & (mark != mark))))


def _finish_normalization(models: Sequence[Any]) -> None:
    """Normalization layers compute with copies of their variables, made anew on request."""
    for model in models:
        for layer in model._flatten_layers():
            if hasattr(layer, "adapt_mean") and hasattr(layer, "finalize_state"):
                layer.finalize_state()


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
