# SPDX-License-Identifier: Apache-2.0
"""How well a linear classifier tells the labels."""

import warnings
from typing import Any

import numpy as np

from ray_embed.blas import one_thread
from ray_embed.evaluation.trial import Trial
from ray_embed.matrix import Matrix

Array = np.ndarray[Any, Any]

FOLDS, FOLDS_OF_MANY, MANY = 5, 2, 2000
_SEED = 0
_ITERATIONS = 100


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
    with one_thread(), parallel_config("threading", n_jobs=-1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Of classes with fewer members than folds.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        # Of a reference with a few records a class: what it tells is asked for all the same.
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        if not trial.leaves_one_out:
            found: Array = model.fit(known, labels).predict(features[trial.judged])
            return found
        wanted = FOLDS if len(labels) <= MANY else FOLDS_OF_MANY
        count = min(wanted, int(np.bincount(labels).max()))
        folds = StratifiedKFold(count, shuffle=True, random_state=_SEED)
        everyone = cross_val_predict(model, known, labels, cv=folds)
    return np.asarray(everyone[np.searchsorted(rows, trial.judged)])
