# SPDX-License-Identifier: Apache-2.0
"""Datasets: objects that give elements in order, or what returns such an object."""

import pickle
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.array_images import ArrayImages, open_arrays
from ray_embed.sources.base import PlannedRecords
from ray_embed.sources.image_contents import ContentImages, are_contents


@dataclass(frozen=True)
class PickledObject:
    """An object of the user, as it is sent to the actors."""

    content: bytes

    def load(self) -> Any:
        """Return the object."""
        return pickle.loads(self.content)  # noqa: S301 - pickled by the process that plans the run


@dataclass(frozen=True)
class Dataset:
    """A sequential source: ``module:callable``, a function, or a dataset object.

    `image_column`, `label_column` and `key_column` are the fields of elements that are dicts, or
    None if they are not named. `label_type` says whether labels are one-hot or
    multi-hot vectors. `name` is what the source was called, if not by its callable.
    """

    info: ClassVar[None] = None
    split: str
    source: Any
    kwargs: dict[str, Any]
    image_column: str | None = None
    label_column: str | None = None
    key_column: str | None = None
    label_type: str = "text"
    name: str | None = None

    @property
    def location(self) -> str:
        """The name of the callable, or of the object's type, as recorded in the run folder."""
        if self.name is not None or isinstance(self.source, str):
            return self.name or self.source
        function = getattr(self.source, "__qualname__", None)
        module = getattr(self.source, "__module__", None)
        return f"{module}:{function}" if function and module else type(self.source).__name__

    @property
    def where(self) -> str:
        """How messages refer to this source."""
        return f"--source {self.split}={self.location}"

    def records(self, skipped: Counter[str]) -> None:
        """Return None, because the records are not known until they are read."""

    def reader(self) -> "DeliveredImageReader":
        """Return a reader for the delivered images."""
        return DeliveredImageReader(self.where)


@dataclass(frozen=True)
class DeliveredImageReader:
    """Opens images that were delivered together with their shard."""

    where: str

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> ArrayImages | ContentImages:
        """Return the delivered images: arrays, or the contents of image files.

        Raises:
            InputError: arrays do not fit the encoder.
        """
        if are_contents(records.images):
            return ContentImages(records.images, pixels)
        return open_arrays(records.images, records.positions, pixels, self.where)

    def verify(self, rows: pa.Table) -> None:
        """Do nothing, because the record reader already compares the records with the plan."""
