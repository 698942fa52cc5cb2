# SPDX-License-Identifier: Apache-2.0
"""Images as the contents of files, in the elements of datasets.

They are decoded in the actors, as image files are. A content is bytes, or what the `Image` feature
of Hugging Face datasets gives without decoding: a dict of `bytes` and `path`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError, StorageError
from ray_embed.images import decode
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.image_walk import IMAGE_ENDINGS
from ray_embed.storage.retry import explain_error

_NO_IMAGE = "missing"
_MAX_PATH = 4096
_ENDINGS = tuple(ending.encode() for ending in IMAGE_ENDINGS)


def unwrap_strings(value: Any) -> Any:
    """Return the strings of a tensor or array as Python values; return other values unchanged."""
    dtype = getattr(getattr(value, "dtype", None), "name", None)
    return np.asarray(value).tolist() if dtype in ("object", "string") else value


def is_content(value: Any) -> bool:
    """Return whether a value is the content of an image file."""
    if isinstance(value, dict):
        return "bytes" in value and value.keys() <= {"bytes", "path"}
    return isinstance(value, (bytes, bytearray))


def are_contents(images: Any) -> bool:
    """Return whether delivered images are the contents of files, and not arrays."""
    return isinstance(images, list) and not isinstance((images or [None])[0], np.ndarray)


def get_path(value: Any) -> str | None:
    """Return the path that comes with a content, if any."""
    return value.get("path") if isinstance(value, dict) else None


def read_content(value: Any, where: str) -> bytes | None:
    """Return a content as bytes, or None if there is no image.

    Args:
        value: the content, or None.
        where: how messages refer to the dataset.

    Raises:
        InputError: the bytes are the path of a file, and not its content.
        StorageError: the file that a content names cannot be read.
    """
    if isinstance(value, dict):
        path, value = value.get("path"), value["bytes"]
        if value is None and path is not None:
            return _read_file(path)
    if value is None:
        return None
    content = bytes(value)
    if len(content) <= _MAX_PATH and content.lower().endswith(_ENDINGS):
        raise InputError(
            f"{where}: img is {content.decode(errors='backslashreplace')!r}, the path of a file "
            "and not its content. Decode the images in the dataset function, give the content "
            "(tf.io.read_file), or list the paths in a .csv file with the columns path and label"
        )
    return content


def _read_file(path: str) -> bytes | None:
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        # It comes with the datasets of Hugging Face, which give such paths.
        import fsspec

        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {explain_error(error)}") from error


@dataclass(frozen=True)
class ContentImages:
    """The contents of image files in memory; None stands for a record without an image."""

    contents: Sequence[bytes | None]
    pixels: PixelSpec

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def size(self) -> int:
        """The number of bytes of the contents."""
        return sum(len(content or b"") for content in self.contents)

    def find_value_range(self) -> None:
        """Return None, because the values of encoded images are usually levels."""

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield the decoded images; leave out those that cannot be decoded."""
        if not self.contents:
            return iter(())
        # An empty image cannot be decoded either; `diagnose` finds the reason.
        contents = (content or b"" for content in self.contents)
        return decode.content_batches(contents, self.pixels, batch_size, threads)

    def diagnose(self, number: int) -> str | Batch:
        """Return why an image was left out, as a fixed reason, or the image if it decodes."""
        content = self.contents[number]
        return _NO_IMAGE if content is None else decode.diagnose(content, self.pixels)

    def load(self, number: int) -> Array:
        """Return an image as it is stored, (h, w, c), usually uint8."""
        return decode.decode_file(self.contents[number] or b"")
