# SPDX-License-Identifier: Apache-2.0
"""Labels that are one-hot or multi-hot vectors: ``--label-type onehot`` and ``multihot``."""

from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError

ONE_HOT, MULTI_HOT = "onehot", "multihot"
VECTOR_TYPES = (ONE_HOT, MULTI_HOT)


def decode_vectors(vectors: Array, label_type: str, where: str) -> list[Any]:
    """Return the class of each one-hot vector, or the list of classes of each multi-hot vector.

    Args:
        vectors: (N, K) numbers, which must be 0 or 1.
        label_type: `ONE_HOT` or `MULTI_HOT`.
        where: how messages refer to the vectors.

    Raises:
        InputError: they are not vectors of this type; the message names the row.
    """
    if vectors.ndim != 2 or vectors.dtype.kind not in "biuf":
        raise InputError(
            f"{where}: the labels have shape {vectors.shape} and type {vectors.dtype}, but "
            f"--label-type {label_type} takes a vector of numbers per record, (N, K); leave the "
            "option out"
        )
    is_valid = np.all((vectors == 0) | (vectors == 1), axis=1)
    if label_type == ONE_HOT:
        is_valid &= vectors.sum(axis=1) == 1
    if not is_valid.all():
        row = int(np.argmin(is_valid))
        vector = np.array2string(vectors[row], threshold=20)
        raise InputError(
            f"{where}: row {row} of the labels is {vector}, but "
            + (
                "a one-hot vector has a single 1 and otherwise zeros; for vectors with several or "
                "no 1s, use --label-type multihot"
                if label_type == ONE_HOT
                else "a multi-hot vector has only zeros and ones"
            )
        )
    if label_type == ONE_HOT:
        classes: list[int] = vectors.argmax(axis=1).tolist()
        return classes
    return [np.flatnonzero(vector).tolist() for vector in vectors]
