# SPDX-License-Identifier: Apache-2.0
"""How well a linear classifier tells the labels."""

import warnings

import numpy as np

from ray_embed.analysis.evaluation.protocol import Trial
from ray_embed.core.arrays import Array, Matrix
from ray_embed.core.threads import limit_blas_to_one_thread, open_ordered_map

FOLDS, FOLDS_OF_MANY, MANY = 5, 2, 2000
_SEED = 0
_ITERATIONS = 100
# Features of more dimensions are replaced by as many numbers as there are records, where these are
# no more than that.
_WIDE, _MOST_RECORDS = 8192, 4096
# Dimensions in memory at once in double precision.
_TOGETHER = 4096


def told(features: Matrix, trial: Trial) -> Array:
    """Give the classes that logistic regression on standardised features tells.

    It learns from the reference, in 100 steps at most; where each record is judged by all others,
    from the other folds of five (of two if there are more than 2,000 records), which hold the
    classes in equal shares.

    Args:
        features: (N, D) float32, of the subset.
        trial: who is judged by whom, by classes.

    Returns:
        (n,) int64, of the judged records.
    """
    from joblib import parallel_config
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    rows = trial.reference
    if trial.leaves_one_out:
        # Who is the only one of a class teaches the others nothing, and leaves folds without it.
        counts = np.bincount(trial.labels[rows])
        rows = rows[counts[trial.labels[rows]] > 1]
    known, labels = features[rows], trial.labels[rows]
    if len(np.unique(labels)) == 1:
        return np.full(len(trial.judged), labels[0])
    # Its products are small: threads would wait for each other. Folds do not.
    with (
        limit_blas_to_one_thread(),
        parallel_config("threading", n_jobs=-1),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Of classes with fewer members than folds.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        # Of a reference with a few records a class: what it tells is asked for all the same.
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        if not trial.leaves_one_out:
            if _is_wide(known):
                return _predict_wide(features, rows, labels, trial.judged)
            found: Array = model.fit(known, labels).predict(features[trial.judged])
            return found
        wanted = FOLDS if len(labels) <= MANY else FOLDS_OF_MANY
        count = min(wanted, int(np.bincount(labels).max()))
        folds = StratifiedKFold(count, shuffle=True, random_state=_SEED)
        if _is_wide(known):
            everyone = np.empty_like(labels)
            cut = list(folds.split(labels, labels))
            with open_ordered_map() as mapped:
                predicted = mapped(
                    lambda at: _predict_wide(known, at[0], labels[at[0]], at[1]), cut
                )
                for (_, test), classes in zip(cut, predicted, strict=True):
                    everyone[test] = classes
        else:
            everyone = cross_val_predict(model, known, labels, cv=folds)
    return np.asarray(everyone[np.searchsorted(rows, trial.judged)])


def _is_wide(features: Matrix) -> bool:
    records, dimensions = features.shape
    return bool(dimensions > _WIDE and records <= _MOST_RECORDS)


def _predict_wide(features: Matrix, train: Array, labels: Array, test: Array) -> Array:
    """Predict what logistic regression on standardized features predicts, without their width.

    Its weights lie in the space of the training records, however many dimensions these have, and
    neither its loss nor its steps change when that space is turned: so records are given by their
    coordinates in it, as many as there are training records.

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

    own, others = np.zeros((len(train), len(train))), np.zeros((len(test), len(train)))
    for start in range(0, features.shape[1], _TOGETHER):
        some = features[:, start : start + _TOGETHER].astype(np.float64)
        known = StandardScaler().fit(some[train])
        learned = known.transform(some[train])
        own += learned @ learned.T
        others += known.transform(some[test]) @ learned.T
    squares, axes = eigh(own, overwrite_a=True)
    kept = squares > len(own) * np.finfo(np.float64).eps * squares[-1]
    # Features that are all the same have none.
    kept[-1] = True
    axes = axes[:, kept] / np.sqrt(squares[kept].clip(np.finfo(np.float64).tiny))
    model = LogisticRegression(max_iter=_ITERATIONS).fit(axes * squares[kept], labels)
    found: Array = model.predict(others @ axes)
    return found
