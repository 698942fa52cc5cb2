# SPDX-License-Identifier: Apache-2.0
"""Files that hold many images, written by the libraries that people write them with."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.pictures import picture

SIZE = (8, 9)


def encode(seed: int, format_: str = "PNG") -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    picture(seed, SIZE).save(content, format_)
    return content.getvalue()


def pixels_of(seeds: Sequence[int]) -> np.ndarray:
    """The pixels of the pictures with these seeds, (n, H, W, 3)."""
    return np.stack([np.asarray(picture(seed, SIZE)) for seed in seeds])


def write_parquet(path: Path, seeds: Sequence[int], rows: int = 7, **columns: Any) -> Path:
    """Write a Parquet file as Hugging Face does: image structs, and other columns."""
    images = [{"bytes": encode(seed), "path": f"{seed}.png"} for seed in seeds]
    table = pa.table({"image": pa.array(images), **columns})
    pq.write_table(table, path, row_group_size=rows)
    return path


def write_tar(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]], mode: str = "w") -> Path:
    """Write a tar of samples: a key, and contents by ending."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for key, contents in samples:
            for ending, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def sample(seed: int, label: int | None = None, **fields: Any) -> tuple[str, dict[str, bytes]]:
    """A sample for a tar: an image, and perhaps a label and metadata."""
    contents = {"png": encode(seed)}
    if label is not None:
        contents["cls"] = str(label).encode()
    if fields:
        contents["json"] = json.dumps(fields).encode()
    return f"{seed:05d}", contents


def make_dataset(seeds: Sequence[int], image: str = "image", **columns: Any) -> datasets.Dataset:
    """A dataset of Hugging Face: images, and other columns."""
    features = datasets.Dataset.from_dict(columns).features if columns else {}
    contents = [{"bytes": encode(seed), "path": f"{seed}.png"} for seed in seeds]
    return datasets.Dataset.from_dict(
        {image: contents, **columns},
        features=datasets.Features({image: datasets.Image(), **features}),
    )
