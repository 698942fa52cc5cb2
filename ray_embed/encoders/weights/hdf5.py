# SPDX-License-Identifier: Apache-2.0
"""Load the weights of a Keras file, regardless of its name, into a model: all or none."""

import contextlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_embed.encoders.file_format import ZIP, detect_format
from ray_embed.encoders.keras_compat import WEIGHTS_HINT, variable_path, wanted_shape, weights_of
from ray_embed.errors import InputError, get_first_line


def load_hdf5(
    model: Any, weights: str, around: Sequence[Any] = (), paths: Sequence[str] = ()
) -> None:
    """Set every weight of `model` from the file, or change nothing.

    Args:
        model: a built Keras 3 or tf_keras model.
        weights: path of the file.
        around: models that contain `model`. One of them may have been saved instead.
        paths: the attribute paths that lead to `model` from an object that contains it
            (`inner/encoder`).

    Raises:
        InputError: the file cannot be read or does not belong to the model.
    """
    errors: list[InputError] = []
    with _link_with_layout_suffix(weights) as (path, count):
        for target in (model, *around):
            try:
                ordered = path if count is not None else _in_order_of(target, path, weights)
                _load_by_keras(target, ordered, count, weights)
                return
            except InputError as error:
                errors.append(error)
        for part, part_count in _split_into_parts(
            path, weights, paths if count is not None else ()
        ):
            with contextlib.suppress(InputError):
                _load_by_keras(model, part, part_count, weights)
                return
    raise errors[0]  # the error of the model itself


@contextlib.contextmanager
def _link_with_layout_suffix(weights: str) -> Iterator[tuple[str, int | None]]:
    """Yield a path to the weights with the suffix of their layout, and the number of values.

    Keras chooses the layout by the suffix, but Keras 2 also wrote its older layout to
    `x.weights.h5`. The number is None for the older layout, which Keras checks itself.
    """
    with tempfile.TemporaryDirectory(prefix="ray_embed_weights_") as scratch:
        source = Path(weights).resolve()
        if detect_format(source) == ZIP:
            source = _unpacked(weights, Path(scratch))
        with _open_file(source, weights) as file:
            older = "layer_names" in file.attrs or "model_weights" in file
            count = None if older else _count_values(file)
        link = Path(scratch, "older.h5" if older else "newer.weights.h5")
        link.symlink_to(source)
        yield str(link), count


def _split_into_parts(path: str, weights: str, paths: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield parts of a newer-layout file as separate files, each with its number of values.

    This loads the encoder's weights even if the model that contains it cannot be built.
    """
    import h5py

    part = Path(path).with_name("part.weights.h5")
    for name in paths:
        with _open_file(path, weights) as file, h5py.File(part, "w") as out:
            group = file.get(name)
            if not isinstance(group, h5py.Group):
                continue
            for key in group:
                file.copy(group[key], out, key)
            count = _count_values(out)
        yield str(part), count


@contextlib.contextmanager
def _open_file(path: str | Path, weights: str) -> Iterator[Any]:
    """Open an HDF5 file for reading. Damage may show up at any access to it."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError for damage
        raise InputError(
            f"{weights}: not a readable HDF5 file ({get_first_line(error)})"
        ) from error


def _unpacked(weights: str, scratch: Path) -> Path:
    """Unpack the weights from a `.keras` file, and read nothing else in it."""
    path = scratch / "unpacked.h5"
    try:
        with (
            zipfile.ZipFile(weights) as archive,
            archive.open("model.weights.h5") as packed,
            path.open("wb") as out,
        ):
            shutil.copyfileobj(packed, out)
    except KeyError as error:
        raise InputError(f"{weights}: it has no model.weights.h5; save the model again") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
        raise InputError(
            f"{weights}: not a readable .keras file ({get_first_line(error)})"
        ) from error
    return path


def _count_values(file: Any) -> int:
    """Return the number of model variables in a newer-layout file, not counting scalars.

    The file also holds the measures that are attributes of the model, but most of their values are
    scalars.
    """
    import h5py

    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        is_other = parts[0] == "metrics" or any(
            "optimizer" in part or part == "seed_generator" for part in parts
        )
        if isinstance(item, h5py.Dataset) and item.ndim and "vars" in parts and not is_other:
            names.append(name)

    file.visititems(visit)
    return len(names)


def _in_order_of(target: Any, path: str, weights: str) -> str:
    """Return an older-layout file whose values within each layer are in the order of `target`.

    Keras pairs values by order, trainable ones first. If parts of a nested model were frozen either
    when it was saved or when it is loaded, but not both, values of equal shapes would be swapped.
    """
    import h5py

    with _open_file(path, weights) as file:
        root = file if "layer_names" in file.attrs else file["model_weights"]
        orders = _orders_for(target, root)
    if not orders:
        return path
    copy = Path(path).with_name("ordered.h5")
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        for group, order in orders.items():
            file[group].attrs["weight_names"] = [name.encode() for name in order]
    return str(copy)


def _orders_for(target: Any, root: Any) -> dict[str, list[str]]:
    """Return the right order of values for each group that is not in the layer's order."""
    saved = [root[_text(name)] for name in root.attrs.get("layer_names", ())]
    groups = [group for group in saved if len(group.attrs.get("weight_names", ()))]
    layers = [layer for layer in target.layers if weights_of(layer)]
    if len(groups) != len(layers):
        return {}  # Keras raises an error for this
    orders = {}
    for layer, group in zip(layers, groups, strict=True):
        names = [_text(name) for name in group.attrs["weight_names"]]
        order = _order_by_name(layer, names)
        if order != names:
            orders[str(group.name)] = order
    return orders


def _order_by_name(layer: Any, names: list[str]) -> list[str]:
    """Return the names in the order in which Keras pairs them with the layer's variables.

    If the names do not show the order, they are returned unchanged.
    """
    paths = [variable_path(v) for v in (*layer.trainable_weights, *layer.non_trainable_weights)]
    for depth in (2, 3, 4):
        wanted, have = _ranked(paths, depth), _ranked(names, depth)
        if len(set(have)) == len(names) and sorted(wanted) == sorted(have):
            known = dict(zip(have, names, strict=True))
            return [known[key] for key in wanted]
    return names


def _ranked(paths: Sequence[str], depth: int) -> list[tuple[tuple[str, int], ...]]:
    """Return each path's last parts, numbered by rank: dense_7, dense_9 become dense, dense_1.

    The numbers that Keras assigns differ between programs, but their order is the order of
    creation.
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
    """Let Keras load the file into `target`, and check that each variable received a value.

    Keras may leave variables untouched without an error, so they are filled with marker values
    first.
    """
    variables = weights_of(target)
    _check_count(target, variables, count, weights)
    before = [_copy_values(variable) for variable in variables]
    reason = ""
    try:
        for variable, old in zip(variables, before, strict=True):
            variable.assign(_marked(old))
        target.load_weights(path)
    except Exception as error:  # Keras raises ValueError, KeyError, OSError and more
        reason = " ".join(str(error).split()) or type(error).__name__
    untouched = [
        variable
        for variable, old in zip(variables, before, strict=True)
        if _is_marked(_copy_values(variable), old)
    ]
    if not reason and not untouched:
        return
    for variable, old in zip(variables, before, strict=True):
        variable.assign(old)
    detail = f" ({reason[:600].rstrip('. ')})" if reason else ""
    first = (untouched or variables)[0]
    raise InputError(
        f"{weights}: {wanted_shape(first)}, it got no value from the file{detail}. {WEIGHTS_HINT}"
    )


def _check_count(target: Any, variables: list[Any], count: int | None, weights: str) -> None:
    """Refuse a file of the newer layout that holds more arrays than the model."""
    arrays = [variable for variable in variables if len(variable.shape)]
    if count is None or count <= len(arrays):
        return
    last = f", the last {variable_path(arrays[-1])} {tuple(arrays[-1].shape)}" if arrays else ""
    raise InputError(
        f"{weights}: the file is of a model with more layers: it has {count} arrays, the "
        f"model {target.name} wants {len(arrays)}{last}. {WEIGHTS_HINT}"
    )


def _copy_values(variable: Any) -> Any:
    """Return a copy, not a view, because the variable is overwritten afterwards."""
    import numpy as np

    return np.array(variable.numpy())


def _marked(old: Any) -> Any:
    """Return an array like `old`, filled with a value that no trained weight has."""
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
