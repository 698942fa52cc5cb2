# SPDX-License-Identifier: Apache-2.0
"""Decide whether the actors can read a dataset themselves, by the positions of its records."""

import io
from dataclasses import replace
from typing import Any

from ray import cloudpickle

from ray_embed.errors import get_first_line
from ray_embed.runtime.session import RunSession
from ray_embed.sources.base import ImageReader, SourceInfo
from ray_embed.sources.dataset import Dataset, PickledObject
from ray_embed.sources.indexed_records import IndexedReader

# A larger object holds images, which are better sent to one actor each.
_MAX_PICKLED_BYTES = 64 << 20


def choose_reader(
    source: Dataset, info: SourceInfo, limit: int | None, session: RunSession
) -> tuple[ImageReader, SourceInfo]:
    """Return what opens the images of a dataset in the actors, and the properties of the dataset.

    A dataset with positions is opened in each actor. An object in this process is pickled for
    that; if it cannot be pickled or opened elsewhere, it is read here, in order.
    """
    if info.records is None or info.probes is None:
        return source.reader(), info
    try:
        portable = source if isinstance(source.source, str) else _pickle(source)
        reader = IndexedReader(
            source.where, source=portable, limit=limit, records=info.records, probes=info.probes
        )
        if portable is not source and (reason := session.call(_try_reading, reader)()):
            raise _NotPortableError(reason)
    except _NotPortableError as error:
        note = (
            f"the object is read in this process, one shard at a time, because the actors cannot "
            f"open it ({error}); name a function that returns it, as module:callable"
        )
        return source.reader(), replace(info, records=None, probes=None, notes=(*info.notes, note))
    return reader, info


class _NotPortableError(Exception):
    """An object cannot be opened in an actor."""


def _pickle(source: Dataset) -> Dataset:
    buffer = _LimitedBuffer()
    try:
        cloudpickle.dump(source.source, buffer)
    except Exception as error:
        raise _NotPortableError(f"{type(error).__name__}: {get_first_line(error)}") from error
    return replace(source, source=PickledObject(buffer.getvalue()), name=source.location)


def _try_reading(reader: IndexedReader) -> str | None:
    """Open the dataset in an actor. Return why that fails, if it does."""
    try:
        reader.read(0, 1)
    except Exception as error:
        return f"{type(error).__name__}: {get_first_line(error)}"
    return None


class _LimitedBuffer(io.BytesIO):
    """A buffer that refuses to become too large."""

    def write(self, content: Any) -> int:
        if self.tell() + memoryview(content).nbytes > _MAX_PICKLED_BYTES:
            raise ValueError(f"it has more than {_MAX_PICKLED_BYTES >> 20} MiB")
        return super().write(content)
