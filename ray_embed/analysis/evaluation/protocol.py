# SPDX-License-Identifier: Apache-2.0
"""Who is judged by whom: the records of the first split tell the labels of the others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.runs.sampling import Subset

# Labels beyond it are brought to another unit.
_LARGEST = 1e100


@dataclass(frozen=True)
class Trial:
    """Records whose labels are told by those of others.

    `reference` (m,) and `judged` (n,) are positions in the subset; where they overlap no record
    tells its own label. `labels` (N,) is of the whole subset: numbers of `classes`, int64, -1 where
    there is none, or values, float64, NaN where there is none, and then `classes` is empty. `says`
    is who is judged by whom; `left_out` counts records of classes that the reference lacks.
    """

    reference: Array
    judged: Array
    labels: Array
    classes: tuple[Any, ...]
    says: str
    left_out: int = 0

    @property
    def leaves_one_out(self) -> bool:
        """Whether each record is judged by all others."""
        return bool(np.isin(self.judged, self.reference).any())

    @property
    def most(self) -> int:
        """How many neighbours each record has."""
        return len(self.reference) - self.leaves_one_out


def trial(subset: Subset) -> Trial | str:
    """Say who is judged by whom; or, in a sentence, why nobody is.

    The reference is the first split that has labels, judged are the other ones. Each record is
    judged by all others where there is one split only, or one class in the reference.
    """
    if pa.types.is_floating(subset.label_type):
        return _of_values(subset)
    return _of_classes(subset)


def _of_values(subset: Subset) -> Trial | str:
    values = np.array([np.nan if label is None else label for label in subset.labels], np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return _NONE
    largest = np.abs(values[known]).max()
    if largest and not 1 / _LARGEST < largest < _LARGEST:
        # R² is the same in any unit, and squares must stay finite.
        values = np.ldexp(values, -int(np.frexp(largest)[1]))
    reference, judged, says = _parties(subset, known)
    if len(np.unique(values[judged])) < 2:
        return "the labels are all the same value, so there is nothing to tell"
    if len(reference) < 2:
        return "the first split has one label only, by which nothing can be told"
    return Trial(reference, judged, values, (), says)


def _of_classes(subset: Subset) -> Trial | str:
    known = np.flatnonzero([label is not None for label in subset.labels])
    if not len(known):
        return _NONE
    classes, codes = np.unique(subset.labels[known], return_inverse=True)
    if len(classes) == 1:
        return f"all labels are {classes[0]!r}, so there is nothing to tell apart"
    if 2 * len(classes) > len(known):
        return (
            f"{len(classes)} different labels of {len(known)} records are names rather than "
            "classes, so nothing is judged by them"
        )
    labels = np.full(len(subset), -1)
    labels[known] = codes
    reference, judged, says = _parties(subset, known)
    if len(np.unique(labels[reference])) == 1:
        only = classes[labels[reference[0]]]
        says = f"{_alone(known)}: the first split holds {only!r} only"
        reference = judged = known
    # A record of a class of its own could only be told wrongly, whatever the features.
    enough = 2 if reference is judged else 1
    can_be_told = np.bincount(labels[reference], minlength=len(classes)) >= enough
    told = judged[can_be_told[labels[judged]]]
    if not len(told):
        return "no class of the judged records is in the reference, so nothing can be told"
    left_out = len(judged) - len(told)
    return Trial(reference, told, labels, tuple(classes.tolist()), says, left_out)


_NONE = "there are no labels"


def _parties(subset: Subset, known: Array) -> tuple[Array, Array, str]:
    splits = subset.splits[known]
    is_first = splits == splits[0]
    if is_first.all():
        return known, known, _alone(known)
    reference, judged = known[is_first], known[~is_first]
    names = " and ".join(dict.fromkeys(splits[~is_first]))
    return reference, judged, f"{names} ({len(judged)}) by {splits[0]} ({len(reference)})"


def _alone(known: Array) -> str:
    return f"each of {len(known)} by all others"
