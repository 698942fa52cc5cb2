# SPDX-License-Identifier: Apache-2.0
"""The images of a shard, from wherever they are, as batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError, RunError
from ray_embed.images import decode
from ray_embed.images.decode import Batch, PixelSpec
from ray_embed.planning import Shard, SplitPlan
from ray_embed.sources import files, npz
from ray_embed.sources.files import Contents, File, SizeAndTime

# So many images of a shard show the range of its values.
_FIRST = 16


@dataclass(frozen=True)
class Inputs:
    """The images of some records of a shard: in memory, or in files.

    `planned` is what each file was when the run was planned; `contents` are read ahead where there
    are any on an object store.
    """

    images: Any = None
    files: Sequence[File] = ()
    planned: Sequence[SizeAndTime] = ()
    contents: Contents | None = None

    def __len__(self) -> int:
        return len(self.files) if self.images is None else len(self.images)

    @property
    def size(self) -> int:
        """The bytes of the images: of files as they are stored, of others in memory."""
        if self.images is not None:
            return sum(image.nbytes for image in self.images)
        return sum(size or 0 for size, _ in self.planned)

    def range_of_floats(self) -> tuple[float, float] | None:
        """Return the lowest and the highest value of the first float images; None for others."""
        if self.images is None or not len(self) or self.images[0].dtype == np.uint8:
            return None
        first = [image[np.isfinite(image)] for image in self.images[:_FIRST]]
        values = np.concatenate(first)
        return (float(values.min()), float(values.max())) if values.size else None

    def batches(self, pixels: PixelSpec, size: int, threads: int) -> Iterator[Batch]:
        """Give the images as the encoder takes them; what cannot be decoded is left out."""
        if not len(self):
            return iter(())
        if self.images is not None:
            return decode.array_batches(self.images, pixels, size, threads)
        if self.contents is not None:
            return decode.content_batches(self.contents, pixels, size, threads)
        return decode.file_batches([file.path for file in self.files], pixels, size, threads)

    def check(self) -> None:
        """Raise what has ended the batches.

        Raises:
            InputError: a file is gone, or has changed.
            StorageError: a file cannot be read.
        """
        if self.contents is not None:
            self.contents.check()

    def diagnose(self, at: int, pixels: PixelSpec) -> str | Batch:
        """Say why a record was left out, as one of the fixed reasons; or give it after all.

        Raises:
            InputError: its file was there when planned and is gone.
            StorageError: the storage fails.
        """
        if self.images is not None:
            raise RunError("images in memory were not all prepared")
        content = files.read(self.files[at], self.planned[at])
        return content if isinstance(content, str) else decode.diagnose(content, pixels)


def open_inputs(
    shard: Shard, root: str, rows: pa.Table, images: Any, chosen: Array, pixels: PixelSpec
) -> Inputs:
    """Open the images of the chosen records of a shard.

    Args:
        shard: which one.
        root: where its source is.
        rows: its planned rows.
        images: its images, for a streamed source.
        chosen: the positions among `rows`.
        pixels: what the encoder takes.

    Raises:
        InputError: images in memory do not fit the encoder.
    """
    if shard.split.kind == "files":
        if len(chosen) < rows.num_rows:
            rows = rows.take(pa.array(chosen))
        some, planned = find_files(root, rows), _planned(rows)
        away = any(file.filesystem is not None for file in some)
        return Inputs(None, some, planned, Contents(some, planned) if away else None)
    if shard.split.kind == "array":
        images = npz.read_images(root, shard.position, rows.num_rows)
    if len(chosen) < rows.num_rows:
        images = [images[at] for at in chosen] if isinstance(images, list) else images[chosen]
    check_shapes(images, shard.split, shard.position, pixels)
    return Inputs(images)


def find_files(root: str, rows: pa.Table) -> list[File]:
    """Give the files that planned rows name."""
    folder = files.find(root)
    return [files.below(folder, path) for path in rows["path"].to_pylist()]


def check_unchanged(shard: Shard, root: str, rows: pa.Table) -> None:
    """Compare a shard's files with what they were when planned; objects were when they were read.

    Raises:
        InputError: one has changed, or is gone.
        StorageError: one cannot be looked at.
    """
    if shard.split.kind == "stream" or not rows.num_rows:
        return
    if shard.split.kind == "array":
        files.check_unchanged([files.find(root)], _planned(rows)[:1])
        return
    pairs = zip(find_files(root, rows), _planned(rows), strict=True)
    here = [(file, planned) for file, planned in pairs if file.filesystem is None]
    files.check_unchanged([file for file, _ in here], [planned for _, planned in here])


def _planned(rows: pa.Table) -> list[SizeAndTime]:
    return list(zip(rows["size"].to_pylist(), rows["mtime"].to_pylist(), strict=True))


def check_shapes(images: Any, split: SplitPlan, position: int, pixels: PixelSpec) -> None:
    """Compare images in memory with what the encoder takes.

    Args:
        images: some of a split's, each (h, w, c).
        split: for the message.
        position: that of the first one in the split.
        pixels: what the encoder takes.

    Raises:
        InputError: one has another number of channels, or another size that is not to be changed.
    """
    for at, image in enumerate(images):
        channels = image.shape[-1]
        if channels == 1 and pixels.repeat_channel:
            channels = pixels.shape[2]
        fits = pixels.resize is not None or image.shape[:2] == pixels.shape[:2]
        if channels != pixels.shape[2] or not fits:
            raise InputError(
                f"--source {split.split}={split.root}: image {position + at} has "
                f"the shape {image.shape}, the encoder takes {pixels.shape}; give "
                + ("--image-size to have images resized" if not fits else "all images its channels")
            )
