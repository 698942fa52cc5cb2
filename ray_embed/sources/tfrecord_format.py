# SPDX-License-Identifier: Apache-2.0
"""The framing of TFRecord files: each record has its length in front, and checksums.

A record is a header (the length, uint64, and its checksum), the data, and the checksum of the data
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). Planning hops
from header to header; the actors read the data of their records and check it.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

from ray_embed.errors import InputError
from ray_embed.sources.files import File, open_file
from ray_embed.sources.packed_images import Place, read_ranges
from ray_embed.storage.retry import call_with_retries, explain_error

_HEADER = struct.Struct("<QI")
_CHECKSUM_BYTES = 4
# A local file is read where the small features are. A request to a store costs as much time as
# reading some megabytes.
_LOCAL_BLOCK, _STORE_BLOCK = 16 << 10, 8 << 20
_COMPRESSED = {
    b"\x1f\x8b": ("GZIP", "gunzip"),
    b"\x78\x01": ("ZLIB", "pigz -dz"),
    b"\x78\x5e": ("ZLIB", "pigz -dz"),
    b"\x78\x9c": ("ZLIB", "pigz -dz"),
    b"\x78\xda": ("ZLIB", "pigz -dz"),
}


@dataclass
class RangeReader:
    """Reads ranges of a file, a block at a time."""

    stream: IO[bytes]
    is_remote: bool
    _start: int = 0
    _content: bytes = b""

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`; fewer at the end of the file.

        Raises:
            OSError: the file cannot be read.
        """
        begin = start - self._start
        if begin < 0 or begin + size > len(self._content):
            read = partial(self._read_block, start, size)
            self._content = call_with_retries(read) if self.is_remote else read()
            self._start, begin = start, 0
        return self._content[begin : begin + size]

    def _read_block(self, start: int, size: int) -> bytes:
        self.stream.seek(start)
        return self.stream.read(max(size, _STORE_BLOCK if self.is_remote else _LOCAL_BLOCK))


def find_records(file: File, size: int) -> Iterator[tuple[Place, RangeReader]]:
    """Yield where the data of each record is, and what reads parts of it.

    Args:
        file: a TFRecord file.
        size: its size in bytes.

    Raises:
        InputError: the file is not a TFRecord, is compressed, cut off or damaged, or cannot be
            read.
    """
    try:
        with open_file(file) as stream:
            reader = RangeReader(stream, file.is_remote)
            start = number = 0
            while start < size:
                length = _read_length(reader, start, file, number)
                place = Place(start + _HEADER.size, length)
                start = place.position + length + _CHECKSUM_BYTES
                if start > size:
                    raise _explain_cut(file, number)
                yield place, reader
                number += 1
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error


def read_records(file: File, places: Sequence[Place]) -> Iterator[bytes]:
    """Yield the data of some records.

    Raises:
        OSError: the file cannot be read, or ends before a record does.
        ValueError: the data of a record differ from their checksum.
    """
    ranges = [
        Place(place.position, (place.length or 0) + _CHECKSUM_BYTES)  # the checksum follows
        for place in places
    ]
    for place, content in zip(places, read_ranges(file, ranges), strict=True):
        content = content or b""
        data, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if compute_checksum(data) != int.from_bytes(checksum, "little"):
            raise ValueError(
                f"the record at byte {place.position - _HEADER.size} has another checksum than its "
                "data, so the file is damaged; copy it again, or write it again"
            )
        yield data


def compute_checksum(data: bytes) -> int:
    """Return the masked CRC-32C of a record."""
    import google_crc32c

    checksum: int = google_crc32c.value(data)
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def _read_length(reader: RangeReader, start: int, file: File, number: int) -> int:
    header = reader.read(start, _HEADER.size)
    if number == 0:
        _refuse_compressed(header, file)
    if len(header) < _HEADER.size:
        raise _explain_cut(file, number)
    length: int
    length, checksum = _HEADER.unpack(header)
    if compute_checksum(header[:8]) == checksum:
        return length
    if number == 0:
        raise InputError(
            f"{file}: not a TFRecord file: it does not begin with the length of a record and its "
            "checksum; write such files with tf.io.TFRecordWriter"
        )
    raise InputError(
        f"{file}: record {number} (byte {start}) has a wrong checksum of its length, so the file "
        "is damaged; copy it again, or write it again"
    )


def _refuse_compressed(header: bytes, file: File) -> None:
    # A record of this length would also begin so, but its checksum would be right.
    if len(header) == _HEADER.size and compute_checksum(header[:8]) == _HEADER.unpack(header)[1]:
        return
    for magic, (name, tool) in _COMPRESSED.items():
        if header.startswith(magic):
            raise InputError(
                f"{file}: the TFRecord file is compressed with {name}, so that its records cannot "
                f"be read one by one; uncompress it with {tool}, or write it without compression "
                "(JPEG and PNG images hardly get larger)"
            )


def _explain_cut(file: File, number: int) -> InputError:
    return InputError(
        f"{file}: the file ends within record {number}, so it is cut off; copy it again, or write "
        "it again"
    )
