# SPDX-License-Identifier: Apache-2.0
"""Choose which records predict the labels of others: the first split is the reference."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array, as_objects
from ray_embed.runs.sampling import Subset
from ray_embed.sources.label_lists import is_list

# Values are rescaled if the largest is above this or below its inverse.
_MAX_MAGNITUDE = 1e100
_NO_LABELS = "there are no labels"
LISTS_NOTE = (
    "the labels are lists, so ranking precision (knn_lrap) and neighbors with a common label "
    "(knn_common) take the place of accuracies, purity, the linear probe, silhouettes and k-means; "
    "labels that the reference lacks are left out"
)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The records whose labels are predicted, and the records that predict them.

    `reference` (m,) and `evaluated` (n,) are positions in the subset. Where they overlap, no record
    predicts its own label. `labels` (N,) covers the whole subset. It holds either int64 indexes
    into `classes`, with -1 for no label, or float64 values, with NaN for no label; `classes` is
    then empty. If labels are lists, it is a sparse matrix (N, C), which is 1 where a record has one
    of the C `classes`. `description` is a phrase that names the reference and the evaluated
    records. `left_out` counts records of classes that the reference lacks.
    """

    reference: Array
    evaluated: Array
    labels: Any
    classes: tuple[Any, ...]
    description: str
    left_out: int = 0

    @property
    def kind(self) -> Literal["classes", "values", "lists"]:
        """Whether labels are classes, values, or lists of classes."""
        if not self.classes:
            return "values"
        return "classes" if isinstance(self.labels, np.ndarray) else "lists"

    @property
    def leaves_one_out(self) -> bool:
        """Whether each record is predicted by all others."""
        return bool(np.isin(self.evaluated, self.reference).any())

    @property
    def max_neighbors(self) -> int:
        """How many neighbors each evaluated record can have."""
        return len(self.reference) - self.leaves_one_out


def choose_protocol(subset: Subset) -> Protocol | str:
    """Choose the reference and the records to evaluate, or return a sentence that says why not.

    The reference is the first split that has labels; the other splits are evaluated. With one
    split, or one class in the reference, each record is predicted by all others.
    """
    if pa.types.is_floating(subset.label_type):
        return _choose_for_values(subset)
    return _choose_for_classes(subset)


def _choose_for_values(subset: Subset) -> Protocol | str:
    values = np.array([np.nan if label is None else label for label in subset.labels], np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return _NO_LABELS
    largest = np.abs(values[known]).max()
    if largest and not 1 / _MAX_MAGNITUDE < largest < _MAX_MAGNITUDE:
        # R² is the same in any unit, and squares must stay finite.
        values = np.ldexp(values, -int(np.frexp(largest)[1]))
    reference, evaluated, description = _divide_by_split(subset, known)
    if len(np.unique(values[evaluated])) < 2:
        return "the labels are all the same value, so there is nothing to predict"
    if len(reference) < 2:
        return "the first split has only one label, which predicts nothing"
    return Protocol(
        reference=reference,
        evaluated=evaluated,
        labels=values,
        classes=(),
        description=description,
    )


def _choose_for_classes(subset: Subset) -> Protocol | str:
    has_lists = is_list(subset.label_type)
    lists = [_list_classes(label) for label in subset.labels]
    # One row per record and class.
    rows = np.repeat(np.arange(len(subset)), [len(labels) for labels in lists])
    if not len(rows):
        return _NO_LABELS
    known = np.unique(rows)
    pairs = as_objects([label for labels in lists for label in labels])
    classes, codes = np.unique(pairs, return_inverse=True)
    if len(classes) == 1:
        return f"all labels are {classes[0]!r}, so there is nothing to predict"
    if 2 * len(classes) > len(codes):
        return (
            f"{len(classes)} different labels of {len(known)} records are names rather than "
            "classes, so they are not used"
        )
    reference, evaluated, description = _divide_by_split(subset, known)
    of_reference = codes[np.isin(rows, reference)]
    if len(np.unique(of_reference)) == 1:
        only = classes[of_reference[0]]
        description = f"{_describe_leave_one_out(known)}: the first split holds only {only!r}"
        reference = evaluated = known
        of_reference = codes
    # The only record of a class would be mispredicted, whatever the features.
    enough = 2 if reference is evaluated else 1
    is_predictable = np.bincount(of_reference, minlength=len(classes)) >= enough
    predictable = evaluated[np.isin(evaluated, rows[is_predictable[codes]])]
    if not len(predictable):
        return "no class of the evaluated records is in the reference, so nothing can be predicted"
    if has_lists:
        labels = _make_table(rows, codes, (len(subset), len(classes)))[:, is_predictable]
        classes = classes[is_predictable]
    else:
        labels = np.full(len(subset), -1)
        labels[rows] = codes
    return Protocol(
        reference=reference,
        evaluated=predictable,
        labels=labels,
        classes=tuple(classes.tolist()),
        description=description,
        left_out=len(evaluated) - len(predictable),
    )


def _list_classes(label: Any) -> list[Any]:
    """Return the classes of a record, given its label or list of labels."""
    if isinstance(label, list):
        return sorted(set(label))
    return [] if label is None else [label]


def _make_table(rows: Array, codes: Array, shape: tuple[int, int]) -> Any:
    """Return a sparse matrix (N, C) that is 1 where a record has a class."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows), np.int64), (rows, codes)), shape=shape)


def _divide_by_split(subset: Subset, known: Array) -> tuple[Array, Array, str]:
    """Divide the records with labels into reference and evaluated ones, and describe both."""
    splits = subset.splits[known]
    is_first = splits == splits[0]
    if is_first.all():
        return known, known, _describe_leave_one_out(known)
    reference, evaluated = known[is_first], known[~is_first]
    names = " and ".join(dict.fromkeys(splits[~is_first]))
    return reference, evaluated, f"{names} ({len(evaluated)}) by {splits[0]} ({len(reference)})"


def _describe_leave_one_out(known: Array) -> str:
    return f"each of {len(known)} by all others"
