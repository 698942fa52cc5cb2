# SPDX-License-Identifier: Apache-2.0
"""Loads the weights of a file that Keras wrote, whatever its name, into a model: all or none."""

import contextlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_embed.encoders.file_kind import ZIP, file_kind
from ray_embed.encoders.keras_compat import MEND, variable_path, wanted_shape, weights_of
from ray_embed.errors import InputError, first_line


def load_hdf5(
    model: Any, weights: str, around: Sequence[Any] = (), paths: Sequence[str] = ()
) -> None:
    """Give every weight of `model` its value from the file, or change nothing.

    Args:
        model: a built Keras 3 or tf_keras model.
        weights: path of the file.
        around: models that contain `model`, one of which may have been saved instead.
        paths: where `model` is in the outermost of these, by attributes (`inner/encoder`).

    Raises:
        InputError: the file cannot be read or does not belong to the model.
    """
    errors: list[InputError] = []
    with _plain_h5(weights) as (path, count):
        for target in (model, *around):
            try:
                ordered = path if count is not None else _in_order_of(target, path, weights)
                _load_by_keras(target, ordered, count, weights)
                return
            except InputError as error:
                errors.append(error)
        for inner, held in _parts(path, weights, paths if count is not None else ()):
            with contextlib.suppress(InputError):
                _load_by_keras(model, inner, held, weights)
                return
    raise errors[0]  # that of the model itself


@contextlib.contextmanager
def _plain_h5(weights: str) -> Iterator[tuple[str, int | None]]:
    """A path to the weights whose ending tells their layout, and how many values they hold.

    Keras goes by the ending, but Keras 2 wrote its older layout to `x.weights.h5` too. The number
    is None for the older layout, which Keras checks itself.
    """
    with tempfile.TemporaryDirectory(prefix="ray_embed_weights_") as scratch:
        source = Path(weights).resolve()
        if file_kind(source) == ZIP:
            source = _unpacked(weights, Path(scratch))
        with _opened(source, weights) as file:
            older = "layer_names" in file.attrs or "model_weights" in file
            count = None if older else _count_values(file)
        link = Path(scratch, "older.h5" if older else "newer.weights.h5")
        link.symlink_to(source)
        yield str(link), count


def _parts(path: str, weights: str, paths: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the parts of a newer-layout file as files of their own, and how many values they hold.

    So the encoder's weights are loaded even where the model around it cannot be built.
    """
    import h5py

    part = Path(path).with_name("part.weights.h5")
    for name in paths:
        with _opened(path, weights) as file, h5py.File(part, "w") as out:
            group = file.get(name)
            if not isinstance(group, h5py.Group):
                continue
            for key in group:
                file.copy(group[key], out, key)
            count = _count_values(out)
        yield str(part), count


@contextlib.contextmanager
def _opened(path: str | Path, weights: str) -> Iterator[Any]:
    """The HDF5 file, open for reading; damage may show at any access to it."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError for damage
        raise InputError(f"{weights}: not a readable HDF5 file ({first_line(error)})") from error


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
        raise InputError(f"{weights}: not a readable .keras file ({first_line(error)})") from error
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

    with _opened(path, weights) as file:
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
    """The groups of the file whose values are in another order than the layer's variables."""
    saved = [root[_text(name)] for name in root.attrs.get("layer_names", ())]
    groups = [group for group in saved if len(group.attrs.get("weight_names", ()))]
    layers = [layer for layer in target.layers if weights_of(layer)]
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
    variables = weights_of(target)
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
    raise _h5_error(weights, untouched or variables, _as_stored(reason, path))


def _as_stored(reason: str, path: str) -> str:
    """What Keras says, with the shapes that are in the file.

    tf_keras turns the kernel of a convolution that does not fit around, as Theano had them, and
    then names the shape that this gave.
    """
    import h5py

    stored: set[tuple[int, ...]] = set()

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            stored.add(item.shape)

    with contextlib.suppress(Exception), h5py.File(path, "r") as file:  # of a damaged file
        file.visititems(visit)
    for shape in stored:
        if len(shape) == 4:
            turned = (shape[3], shape[2], shape[0], shape[1])
            if turned not in stored:
                reason = reason.replace(f"value shape {turned}", f"value shape {shape}")
    return reason


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
    detail = f" ({reason.rstrip('. ')})" if reason else ""
    return InputError(f"{weights}: {wanted_shape(variable)}, {stored}{detail}. {MEND}")


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
