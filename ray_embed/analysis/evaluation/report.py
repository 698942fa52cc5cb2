# SPDX-License-Identifier: Apache-2.0
"""Format an evaluation as a table, from its plain data."""

from collections.abc import Iterator
from typing import Any

from ray_embed.analysis.evaluation.spectrum import NAMES
from ray_embed.core.text_table import align

Entry = dict[str, Any]

_MAX_LISTED = 10
_AVERAGING_POOLS = ("gap", "gmp", "gem")
_DECIMAL_PLACES = {"rankme": 1, "stable_rank": 1, "participation_ratio": 1, "alpha_req": 2}
_FIRST_WIDTH = 22


def format_evaluation(layer: str, entry: Entry) -> Iterator[str]:
    """Yield the lines of a layer's entry in `evaluation.json`."""
    pooled = "" if entry["pool"] == "none" else f" ({entry['pool']})"
    yield f"{layer}{pooled}: {_describe_sample(entry)}"
    if entry["judged"]:
        yield f"predicted: {entry['judged']}"
    for note in entry["notes"]:
        yield f"note: {note}"
    columns = entry["measures"]
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    by_label = [name for name in names if name not in NAMES]
    if by_label:
        yield ""
        yield from _format_measures("by labels", by_label, columns)
    without = entry["without_near_duplicates"]
    if without:
        yield ""
        names_without = list(without["encoder"])
        count = without["encoder"][names_without[0]]["n"]
        title = f"of the {count} without a near-duplicate in the reference"
        yield from _format_measures(title, names_without, without)
    spectral = [name for name in NAMES if name in names]
    if spectral:
        yield ""
        yield from _format_measures("without labels: no verdict", spectral, columns)
        yield from _name_measures_of_all(entry)
    yield ""
    yield from _format_duplicates(entry)
    yield from _format_classes(entry)
    yield from _format_confused(entry)
    yield from _format_verdicts(entry)


def _describe_sample(entry: Entry) -> str:
    if entry["records"] == entry["total"]:
        return f"all {entry['total']} records"
    return (
        f"{entry['records']} of {entry['total']} records, drawn by split and label "
        f"(seed {entry['seed']})"
    )


def _format_measures(title: str, names: list[str], columns: dict[str, Entry]) -> Iterator[str]:
    rows = [
        [name, *(_format_measure(name, column.get(name)) for column in columns.values())]
        for name in names
    ]
    if len(title) > max(_FIRST_WIDTH, *map(len, names)):
        yield title
        title = ""
    head = [title, *(column.replace("_", " ") for column in columns)]
    yield from align([head, *rows], first_width=_FIRST_WIDTH)


def _format_measure(name: str, measure: Entry | None) -> str:
    if measure is None:
        return ""
    places = _DECIMAL_PLACES.get(name, 3)
    value = f"{measure['value']:.{places}f}"
    if measure["interval"] is None:
        return value
    low, high = measure["interval"]
    return f"{value} [{low:.{places}f}, {high:.{places}f}]"


def _name_measures_of_all(entry: Entry) -> Iterator[str]:
    """Name the measures that cover all records of the run when the others cover only a sample."""
    total, measures = entry["total"], entry["measures"]["encoder"]
    if entry["records"] == total:
        return
    names = [name for name in NAMES if name in measures and measures[name]["n"] == total]
    if names:
        yield f"{', '.join(names)} of the encoder: over all {total} records"


def _format_duplicates(entry: Entry) -> Iterator[str]:
    near = entry["near_duplicates"]
    if near is None:
        yield "near-duplicates: unknown, as thumbnails are missing"
    else:
        yield _format_count("near-duplicates in pixels", near, entry)
        for split, others in near["by_split"].items():
            for other, count in others.items():
                yield f"  {count} of {split} have one in {other}"
    yield _format_count("equal features", entry["equal_features"], entry)


def _format_count(what: str, duplicates: Entry, entry: Entry) -> str:
    return f"{what}: {duplicates['records'] or 'none'} of {entry['records']} records"


def _format_classes(entry: Entry) -> Iterator[str]:
    classes = entry.get("classes", [])
    if classes:
        yield ""
        few = f", the worst {_MAX_LISTED} of {len(classes)}" if len(classes) > _MAX_LISTED else ""
        yield f"share of the 20 nearest with the same label{few}"
        for item in classes[:_MAX_LISTED]:
            yield f"  {item['label']!s:<20}  {item['purity']:.3f} of {item['n']}"


def _format_confused(entry: Entry) -> Iterator[str]:
    confused = entry.get("confused", {"pairs": []})
    if confused["pairs"]:
        yield ""
        yield f"most confused, by {confused['neighbours']} neighbors (cosine)"
        for pair in confused["pairs"][:_MAX_LISTED]:
            count = f"{pair['count']} of {pair['of']}"
            yield f"  {pair['label']!s:<20}  predicted as {pair['taken_for']}: {count}"


def _format_verdicts(entry: Entry) -> Iterator[str]:
    """Count the measures in which the encoder is better or worse than its baselines."""
    verdicts = entry.get("verdicts", {})
    if verdicts:
        yield ""
    for baseline, names in verdicts.items():
        better, worse, unclear = (names[kind] for kind in ("better", "worse", "unclear"))
        yield (
            f"{baseline.replace('_', ' ')}: the encoder is better in {len(better)} of "
            f"{len(better + worse + unclear)} measures, worse in {len(worse)}, "
            f"neither beyond the interval in {len(unclear)}"
        )
    is_worse = any(len(names["worse"]) > len(names["better"]) for names in verdicts.values())
    if is_worse and entry["pool"] in _AVERAGING_POOLS:
        yield (
            f"the features are pooled over all positions (--pool {entry['pool']}); a run with "
            "--pool flatten shows whether that is the reason"
        )
