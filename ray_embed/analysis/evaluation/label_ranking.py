# SPDX-License-Identifier: Apache-2.0
"""How well the nearest neighbors predict lists of labels."""

from typing import Any

import numpy as np

from ray_embed.core.arrays import Array

# How many numbers (records times labels) are in memory at once.
_BLOCK = 1_000_000


def compute_ranking_precision(labels: Any, evaluated: Array, neighbors: Array) -> Array:
    """Compute the average precision of the labels of each record, ranked by the neighbors.

    The score of a label is how many neighbors have it. For each label of a record, the precision is
    the share of the record's labels among all labels with the same or a higher score. The mean over
    records is scikit-learn's `label_ranking_average_precision_score`.

    Args:
        labels: (N, C) sparse, 1 where a record has a label.
        evaluated: (n,) int64, records that have labels.
        neighbors: (n, k) int64, their neighbors.

    Returns:
        (n,) float64.
    """
    from scipy.sparse import csr_array

    count, k = neighbors.shape
    ends = np.arange(0, count * k + 1, k)
    votes = csr_array((np.ones(count * k), neighbors.ravel(), ends), shape=(count, labels.shape[0]))
    scores, truth = csr_array(votes @ labels), labels[evaluated]
    size = max(1, _BLOCK // labels.shape[1])
    blocks = [slice(start, start + size) for start in range(0, count, size)]
    dense = ((scores[block].toarray(), truth[block].toarray() > 0) for block in blocks)
    return np.concatenate([_compute_precision(*block) for block in dense])


def _compute_precision(scores: Array, truth: Array) -> Array:
    """Compute the average precision (n,) of scores (n, C), given the true labels (n, C) bool."""
    rows, columns = np.nonzero(truth)
    is_above = scores[rows] >= scores[rows, columns][:, None]
    precision = (is_above & truth[rows]).sum(axis=1) / is_above.sum(axis=1)
    means: Array = np.bincount(rows, precision, len(scores)) / truth.sum(axis=1)
    return means


def compute_common_share(labels: Any, evaluated: Array, neighbors: Array) -> Array:
    """Compute the share of the neighbors that have a label in common with each record.

    Args:
        labels: (N, C) sparse, 1 where a record has a label.
        evaluated: (n,) int64, the records.
        neighbors: (n, k) int64, their neighbors.

    Returns:
        (n,) float64.
    """
    truth = labels[evaluated]
    has_common = [truth.multiply(labels[column]).sum(axis=1) > 0 for column in neighbors.T]
    shares: Array = np.mean(has_common, axis=0)
    return shares
