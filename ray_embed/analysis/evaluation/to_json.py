# SPDX-License-Identifier: Apache-2.0
"""An evaluation as plain data: what `evaluation.json` holds."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_embed.analysis.evaluation.differences import verdict
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import PURITY, Judgement
from ray_embed.analysis.evaluation.protocol import Trial

if TYPE_CHECKING:
    from ray_embed.analysis.evaluation.evaluate import Evaluation
    from ray_embed.analysis.evaluation.near_duplicates import Duplicates

SEED = 0
CONFUSED = 20


def plain(found: "Evaluation") -> dict[str, Any]:
    """Give an evaluation as plain data, without what its means are of."""
    subset = found.subset
    judgement = found.columns["encoder"]
    trial = judgement.trial
    known = int((trial.labels >= 0).sum()) if isinstance(trial, Trial) else 0

    def counted(column: str, one: Measure) -> int:
        if column == "encoder" and one.name in found.over_all:
            return subset.total
        if one.each is not None:
            return len(one.each)
        return known if one.name.startswith("kmeans") else len(subset)

    entry: dict[str, Any] = {
        "records": len(subset),
        "total": subset.total,
        "seed": SEED,
        "pool": found.pool,
        "judged": trial.says if isinstance(trial, Trial) else None,
        "labels": ("classes" if trial.classes else "values") if isinstance(trial, Trial) else None,
        "notes": [*found.notes, *_notes(judgement), *_left_out(found)],
        "measures": {
            column: {one.name: _measure(one, counted(column, one)) for one in judged.measures}
            for column, judged in found.columns.items()
        },
        "near_duplicates": None if found.near is None else _duplicates(found.near, found),
        "equal_features": _duplicates(found.equal, found),
        "without_near_duplicates": {
            column: {one.name: _measure(one, counted(column, one)) for one in measures}
            for column, measures in found.without.items()
        },
    }
    if isinstance(trial, Trial):
        floors = [column for column in found.columns if column != "encoder"]
        entry["verdicts"] = {floor: _verdict(found, floor) for floor in floors}
    if isinstance(trial, Trial) and trial.classes:
        entry["classes"] = _classes(judgement, trial)
        entry["confused"] = {"neighbours": judgement.voters, "pairs": _confused(judgement, trial)}
    return entry


def _measure(one: Measure, count: int) -> dict[str, Any]:
    return {
        "value": one.value,
        "interval": None if one.interval is None else list(one.interval),
        "n": count,
        "higher_is_better": one.higher_is_better,
    }


def _verdict(found: "Evaluation", floor: str) -> dict[str, list[str]]:
    """Name the measures in which the encoder is better, worse, and neither, beyond the interval."""
    floors = {one.name: one for one in found.columns[floor].measures}
    names: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for one in found.columns["encoder"].measures:
        if one.higher_is_better is not None and one.name in floors:
            said = verdict(one, floors[one.name], same=True)
            names[{1: "better", -1: "worse", 0: "unclear"}[said]].append(one.name)
    return names


def _notes(judgement: Judgement) -> list[str]:
    trial = judgement.trial
    if isinstance(trial, str):
        return [trial]
    notes = []
    if trial.left_out:
        notes.append(f"{trial.left_out} records of classes that the reference lacks are not judged")
    wanted = (1, 5, 20, 200) if trial.classes else (5, 20)
    beyond = [str(k) for k in wanted if k > trial.most]
    if beyond:
        notes.append(f"{' and '.join(beyond)} neighbours are left out: there are {trial.most}")
    return notes


def _left_out(found: "Evaluation") -> list[str]:
    if not found.apart:
        return []
    return [f"{found.apart} records are left out, which the random weights' run has set aside"]


def _classes(judgement: Judgement, trial: Trial) -> list[dict[str, Any]]:
    """Give the purity of the neighbours of each class, the worst first."""
    purity = {one.name: one for one in judgement.measures}.get(f"purity_{PURITY}")
    if purity is None or purity.each is None:
        return []
    own = trial.labels[trial.judged]
    counts = np.bincount(own, minlength=len(trial.classes))
    sums = np.bincount(own, purity.each, minlength=len(trial.classes))
    found = [
        {"label": label, "n": int(n), "purity": float(of_class / n)}
        for label, n, of_class in zip(trial.classes, counts, sums, strict=True)
        if n
    ]
    return sorted(found, key=lambda one: one["purity"])


def _confused(judgement: Judgement, trial: Trial) -> list[dict[str, Any]]:
    """Give the pairs of classes of which one is taken for the other most often."""
    own, told = trial.labels[trial.judged], judgement.told
    if told is None:
        return []
    wrong = own != told
    pairs = Counter(zip(own[wrong].tolist(), told[wrong].tolist(), strict=True))
    sizes = np.bincount(own, minlength=len(trial.classes)).tolist()
    return [
        {
            "label": trial.classes[a],
            "taken_for": trial.classes[b],
            "count": count,
            "of": sizes[a],
        }
        for (a, b), count in pairs.most_common(CONFUSED)
    ]


def _duplicates(some: "Duplicates", found: "Evaluation") -> dict[str, Any]:
    subset = found.subset

    def record(at: int) -> dict[str, Any]:
        return {"index": int(subset.index[at]), "key": subset.keys[at], "split": subset.splits[at]}

    return {
        "records": int(some.found.any(axis=1).sum()),
        "by_split": some.counts(subset.splits),
        "pairs": [
            {"records": [record(a), record(b)], "difference": difference}
            for a, b, difference in some.pairs
        ],
    }
