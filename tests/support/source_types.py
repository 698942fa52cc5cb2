# SPDX-License-Identifier: Apache-2.0
"""One folder of images, written as each type of source."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from support.containers import prepare_data_set, write_tar, write_tfrecord
from support.pictures import make_folder

COUNTS = {"cat": 12, "dog": 9}


def write_parquet_files(paths: Sequence[Path], folder: Path) -> None:
    """Write two files whose row groups do not fit the shards."""
    for number, part in enumerate((paths[:10], paths[10:])):
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in part]
        table = pa.table({"image": images, "label": _get_labels(part)})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=3)


def write_tars(paths: Sequence[Path], folder: Path) -> None:
    for number, part in enumerate((paths[:10], paths[10:])):
        samples = [
            (
                f"{path.parent.name}{path.stem}",
                {"png": path.read_bytes(), "cls": path.parent.name.encode()},
            )
            for path in part
        ]
        write_tar(folder / f"part-{number}.tar", samples)


def write_tfrecords(paths: Sequence[Path], folder: Path) -> None:
    for number, part in enumerate((paths[:10], paths[10:])):
        examples = [
            {"image/encoded": path.read_bytes(), "image/class/text": path.parent.name}
            for path in part
        ]
        write_tfrecord(folder / f"part-{number}.tfrecord", examples)


def save_to_disk(paths: Sequence[Path], folder: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": images, "label": _get_labels(paths)}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder, num_shards=2)


def prepare_tfds(paths: Sequence[Path], folder: Path) -> None:
    records = [
        {"image": path.read_bytes(), "label": label}
        for path, label in zip(paths, _get_labels(paths), strict=True)
    ]
    prepared = prepare_data_set(folder, shards=2, shuffle=False, train=records)
    for file in prepared.iterdir():
        file.rename(folder / file.name)


def write_hdf5(paths: Sequence[Path], folder: Path) -> None:
    with h5py.File(folder / "data.h5", "w") as file:
        file["images"] = _decode(paths)
        file.create_dataset("labels", data=_get_labels(paths), dtype=h5py.string_dtype())


def write_npy(paths: Sequence[Path], folder: Path) -> None:
    np.save(folder / "images.npy", _decode(paths))
    np.save(folder / "labels.npy", _get_labels(paths))


def write_npz(paths: Sequence[Path], folder: Path) -> None:
    np.savez(folder / "data.npz", x_train=_decode(paths), y_train=_get_labels(paths))


def write_csv(paths: Sequence[Path], folder: Path) -> None:
    rows = zip(_copy(paths, folder), _get_labels(paths), strict=True)
    lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
    (folder / "list.csv").write_text("\n".join(lines))


def write_jsonl(paths: Sequence[Path], folder: Path) -> None:
    rows = zip(_copy(paths, folder), _get_labels(paths), strict=True)
    lines = [json.dumps({"path": path, "label": label}) for path, label in rows]
    (folder / "list.jsonl").write_text("\n".join(lines))


def write_parquet_listing(paths: Sequence[Path], folder: Path) -> None:
    table = pa.table({"path": _copy(paths, folder), "label": _get_labels(paths)})
    pq.write_table(table, folder / "list.parquet")


def write_described_folder(paths: Sequence[Path], folder: Path) -> None:
    rows = zip(_copy(paths, folder), _get_labels(paths), strict=True)
    lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def copy_files(paths: Sequence[Path], folder: Path) -> None:
    """Write the same folder again."""
    for path, name in zip(paths, _copy(paths, folder), strict=True):
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / name).rename(folder / path.parent.name / path.name)


# How each type is written, and the name of its source in that folder.
ENCODED: dict[str, tuple[Callable[[Sequence[Path], Path], None], str]] = {
    "folder": (copy_files, ""),
    "parquet": (write_parquet_files, ""),
    "parquet-files": (write_parquet_files, "*.parquet"),
    "tar": (write_tars, ""),
    "tar-files": (write_tars, "part-{0..1}.tar"),
    "tfrecord": (write_tfrecords, ""),
    "tfrecord-files": (write_tfrecords, "*.tfrecord"),
    "saved": (save_to_disk, ""),
    "tfds": (prepare_tfds, ""),
    "csv": (write_csv, "list.csv"),
    "jsonl": (write_jsonl, "list.jsonl"),
    "parquet-list": (write_parquet_listing, "list.parquet"),
    "described": (write_described_folder, ""),
}
# These hold decoded images, so that one that cannot be decoded is not in them.
DECODED: dict[str, tuple[Callable[[Sequence[Path], Path], None], str]] = {
    "hdf5": (write_hdf5, "data.h5"),
    "npy": (write_npy, "images.npy"),
    "npz": (write_npz, "data.npz"),
}
FILES = ENCODED | DECODED
# Functions of my_sources.py.
DATASETS = {
    "sequence": "Sequence",
    "batches": "Batches",
    "generator": "generate",
    "tensorflow": "read_with_tensorflow",
}
DECODED_DATASETS = ("batches", "tensorflow")


def write_sources(root: Path) -> Path:
    """Write a folder of images, one of which cannot be decoded, and all types of source."""
    images = make_folder(root / "images", COUNTS)
    unreadable = images / "cat" / "0003.png"
    unreadable.write_bytes(b"no picture")
    paths = sorted(images.rglob("*.png"))
    for type_, (write, _) in FILES.items():
        (root / type_).mkdir()
        write([p for p in paths if type_ in ENCODED or p != unreadable], root / type_)
    return root


def name_files(root: str | Path) -> dict[str, str]:
    """Return the sources of files by split, in a folder or URI."""
    return {type_: f"{root}/{type_}/{name}".rstrip("/") for type_, (_, name) in FILES.items()}


def name_datasets(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the sources of datasets by split, and their keyword arguments."""
    sources = {type_: f"my_sources:{function}" for type_, function in DATASETS.items()}
    return sources, {type_: {"folder": str(folder)} for type_ in sources}


def change(folder: Path) -> None:
    """Change one byte in the middle of the largest file."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _get_labels(paths: Sequence[Path]) -> list[str]:
    return [path.parent.name for path in paths]


def _decode(paths: Sequence[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def _copy(paths: Sequence[Path], folder: Path) -> list[str]:
    """Copy the files to a folder, and return their names there."""
    names = [f"{path.parent.name}-{path.name}" for path in paths]
    for path, name in zip(paths, names, strict=True):
        (folder / name).write_bytes(path.read_bytes())
    return names
