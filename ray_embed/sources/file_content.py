# SPDX-License-Identifier: Apache-2.0
"""Recognize a file that has no known ending, by its first bytes."""

import struct

from ray_embed.sources.files import File, open_file
from ray_embed.sources.tfrecord_format import compute_checksum

_HEAD_BYTES = 512
# The ending of a type of file, by the offset and value of bytes that all such files have.
_SIGNATURES = {
    (0, b"PAR1"): ".parquet",
    (257, b"ustar"): ".tar",
    (0, b"\x89HDF\r\n\x1a\n"): ".h5",
    (0, b"\x93NUMPY"): ".npy",
}


def recognize_file(file: File) -> str | None:
    """Return the usual ending of a file, by its content; None if the content is of no known type.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(file) as stream:
        head = stream.read(_HEAD_BYTES)
    for (offset, signature), ending in _SIGNATURES.items():
        if head[offset:].startswith(signature):
            return ending
    # A TFRecord begins with the length of the first record, and its checksum.
    if len(head) >= 12 and compute_checksum(head[:8]) == struct.unpack("<I", head[8:12])[0]:
        return ".tfrecord"
    return None
