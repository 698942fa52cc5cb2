# SPDX-License-Identifier: Apache-2.0
"""Read the header of an array in the NumPy format, which ``.npy`` and ``.npz`` files share."""

from typing import IO, Any

import numpy as np

from ray_embed.errors import InputError

_OBJECTS_ADVICE = {
    "labels": "save labels=labels.astype(str), or for numbers labels.astype(int); the first makes "
    "a None the label 'None'",
    "images": "if all images have the same size, save images=np.stack(images)",
}


def read_header(stream: IO[bytes], name: str, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an array, and leave the stream at its data.

    Args:
        stream: a stream at the beginning of the array.
        name: the name of the array, for messages.
        where: the file, for messages.

    Raises:
        InputError: the array contains Python objects, or is in Fortran order.
        OSError: the stream cannot be read.
        ValueError: there is no array in it.
    """
    version = np.lib.format.read_magic(stream)
    read_version = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read_version = np.lib.format.read_array_header_1_0
    shape, fortran, dtype = read_version(stream)
    if dtype.hasobject:
        raise InputError(
            f"{where}: {name} contains Python objects, which are unsafe to load; "
            + _OBJECTS_ADVICE.get(name, "save an array of numbers or text")
        )
    if fortran and len(shape) > 1:
        raise InputError(
            f"{where}: {name} is in Fortran order; save np.ascontiguousarray({name}) instead"
        )
    return shape, dtype
