# SPDX-License-Identifier: Apache-2.0
"""How well a linear classifier predicts the labels."""

import warnings

import numpy as np

from ray_embed.analysis.evaluation.protocol import Protocol
from ray_embed.core.arrays import Array, Matrix
from ray_embed.core.threads import limit_blas_to_one_thread, open_ordered_map

FOLDS, FOLDS_FOR_MANY_RECORDS, MANY = 5, 2, 2000
_SEED = 0
_ITERATIONS = 100
# Features with more than `_WIDE` dimensions are reduced to as many dimensions as there are records,
# if there are at most `_MOST_RECORDS` records.
_WIDE, _MOST_RECORDS = 8192, 4096
# How many dimensions are in memory at once in double precision.
_DIMENSIONS_AT_ONCE = 4096


def predict_classes(features: Matrix, protocol: Protocol) -> Array:
    """Predict classes by logistic regression on standardized features.

    The classifier is fitted to the reference, in at most 100 steps. If each record is predicted by
    all others, it is cross-validated instead, with five stratified folds (two if there are more
    than 2,000 records).

    Args:
        features: (N, D) float32, of the subset.
        protocol: the reference, and the records to evaluate. Its labels are classes.

    Returns:
        (n,) int64, of the evaluated records.
    """
    from joblib import parallel_config
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    rows = protocol.reference
    if protocol.leaves_one_out:
        # The only record of a class predicts no other, and some folds would lack the class.
        counts = np.bincount(protocol.labels[rows])
        rows = rows[counts[protocol.labels[rows]] > 1]
    known, labels = features[rows], protocol.labels[rows]
    if len(np.unique(labels)) == 1:
        return np.full(len(protocol.evaluated), labels[0])
    # In products this small, threads would only wait for each other. Folds run in parallel instead.
    with (
        limit_blas_to_one_thread(),
        parallel_config("threading", n_jobs=-1),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        # This warns of classes with fewer members than folds.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        # This warns of a reference with few records per class, but predictions are wanted anyway.
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        if not protocol.leaves_one_out:
            if _is_wide(known):
                return _predict_wide(features, rows, labels, protocol.evaluated)
            predicted: Array = model.fit(known, labels).predict(features[protocol.evaluated])
            return predicted
        wanted = FOLDS if len(labels) <= MANY else FOLDS_FOR_MANY_RECORDS
        count = min(wanted, int(np.bincount(labels).max()))
        folds = StratifiedKFold(count, shuffle=True, random_state=_SEED)
        if _is_wide(known):
            predicted = _cross_predict_wide(known, labels, list(folds.split(labels, labels)))
        else:
            predicted = cross_val_predict(model, known, labels, cv=folds)
    return np.asarray(predicted[np.searchsorted(rows, protocol.evaluated)])


def _cross_predict_wide(features: Matrix, labels: Array, folds: list[tuple[Array, Array]]) -> Array:
    """Predict the classes of each fold from the records outside it."""

    def predict(fold: tuple[Array, Array]) -> Array:
        train, test = fold
        return _predict_wide(features, train, labels[train], test)

    predicted = np.empty_like(labels)
    with open_ordered_map() as mapped:
        for (_, test), classes in zip(folds, mapped(predict, folds), strict=True):
            predicted[test] = classes
    return predicted


def _is_wide(features: Matrix) -> bool:
    records, dimensions = features.shape
    return bool(dimensions > _WIDE and records <= _MOST_RECORDS)


def _predict_wide(features: Matrix, train: Array, labels: Array, test: Array) -> Array:
    """Predict what logistic regression on standardized features would, without their full width.

    The weights of the regression lie in the space that the training records span, however many
    dimensions these have. Neither the loss nor the steps change when that space is rotated. Each
    record is therefore replaced by its coordinates in it, at most as many as there are training
    records.

    Args:
        features: (N, D) float32.
        train: positions of the records to learn from.
        labels: their classes (n,) int64.
        test: positions of the records to predict.

    Returns:
        the classes (m,) int64.
    """
    from scipy.linalg import eigh
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    gram, test_gram = np.zeros((len(train), len(train))), np.zeros((len(test), len(train)))
    for start in range(0, features.shape[1], _DIMENSIONS_AT_ONCE):
        block = features[:, start : start + _DIMENSIONS_AT_ONCE].astype(np.float64)
        scaler = StandardScaler().fit(block[train])
        scaled = scaler.transform(block[train])
        gram += scaled @ scaled.T
        test_gram += scaler.transform(block[test]) @ scaled.T
    squares, axes = eigh(gram, overwrite_a=True)
    kept = squares > len(gram) * np.finfo(np.float64).eps * squares[-1]
    # If all features are the same, they span nothing, but one axis must remain.
    kept[-1] = True
    axes = axes[:, kept] / np.sqrt(squares[kept].clip(np.finfo(np.float64).tiny))
    model = LogisticRegression(max_iter=_ITERATIONS).fit(axes * squares[kept], labels)
    predicted: Array = model.predict(test_gram @ axes)
    return predicted
