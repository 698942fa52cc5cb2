# SPDX-License-Identifier: Apache-2.0
"""An evaluation as a table, from its plain data."""

from collections.abc import Iterator
from typing import Any

from ray_embed.analysis.evaluation.spectrum import NAMES

Entry = dict[str, Any]

_WORST = 10
_AVERAGES = ("gap", "gmp", "gem")
_PLACES = {"rankme": 1, "stable_rank": 1, "participation_ratio": 1, "alpha_req": 2}


def lines(layer: str, entry: Entry) -> Iterator[str]:
    """Give the lines of a layer's entry in `evaluation.json`."""
    pooled = "" if entry["pool"] == "none" else f" ({entry['pool']})"
    yield f"{layer}{pooled}: {sampled(entry)}"
    if entry["judged"]:
        yield f"judged: {entry['judged']}"
    for note in entry["notes"]:
        yield f"note: {note}"
    columns = entry["measures"]
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    by_label = [name for name in names if name not in NAMES]
    if by_label:
        yield ""
        yield from _table("by labels", by_label, columns)
    without = entry["without_near_duplicates"]
    if without:
        yield ""
        own = list(without["encoder"])
        count = without["encoder"][own[0]]["n"]
        yield from _table(f"of the {count} without a near-duplicate in the reference", own, without)
    spectral = [name for name in NAMES if name in names]
    if spectral:
        yield ""
        yield from _table("without labels: no verdict", spectral, columns)
        yield from _over_all(entry)
    yield ""
    yield from _duplicates(entry)
    yield from _classes(entry)
    yield from _verdicts(entry)


def sampled(entry: Entry) -> str:
    """Say which records were looked at."""
    if entry["records"] == entry["total"]:
        return f"all {entry['total']} records"
    return (
        f"{entry['records']} of {entry['total']} records, drawn by split and label "
        f"(seed {entry['seed']})"
    )


def _table(title: str, names: list[str], columns: dict[str, Entry]) -> Iterator[str]:
    rows = [[title, *(column.replace("_", " ") for column in columns)]]
    for name in names:
        found = [column.get(name) for column in columns.values()]
        rows.append([name, *("" if one is None else _number(name, one) for one in found)])
    widths = [max(len(row[at]) for row in rows[1:]) for at in range(len(rows[0]))]
    widths = [
        max(width, len(title)) for width, title in zip(widths, ["", *rows[0][1:]], strict=True)
    ]
    widths[0] = max(widths[0], 22)
    if len(title) > widths[0]:
        yield title
        rows[0][0] = ""
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _number(name: str, one: Entry) -> str:
    places = _PLACES.get(name, 3)
    value = f"{one['value']:.{places}f}"
    if one["interval"] is None:
        return value
    low, high = one["interval"]
    return f"{value} [{low:.{places}f}, {high:.{places}f}]"


def _over_all(entry: Entry) -> Iterator[str]:
    if entry["records"] == entry["total"]:
        return
    found = entry["measures"]["encoder"]
    exact = [name for name in NAMES if name in found and found[name]["n"] == entry["total"]]
    if exact:
        yield f"{', '.join(exact)} of the encoder: over all {entry['total']} records"


def _duplicates(entry: Entry) -> Iterator[str]:
    near = entry["near_duplicates"]
    if near is None:
        yield "near-duplicates: unknown, as thumbnails are missing"
    else:
        yield _counted("near-duplicates in pixels", near, entry)
        for split, others in near["by_split"].items():
            for other, count in others.items():
                yield f"  {count} of {split} have one in {other}"
    yield _counted("equal features", entry["equal_features"], entry)


def _counted(what: str, found: Entry, entry: Entry) -> str:
    return f"{what}: {found['records'] or 'none'} of {entry['records']} records"


def _classes(entry: Entry) -> Iterator[str]:
    classes = entry.get("classes", [])
    if classes:
        yield ""
        few = f", the worst {_WORST} of {len(classes)}" if len(classes) > _WORST else ""
        yield f"share of the 20 nearest with the same label{few}"
        for one in classes[:_WORST]:
            yield f"  {one['label']!s:<20}  {one['purity']:.3f} of {one['n']}"
    confused = entry.get("confused", {"pairs": []})
    if confused["pairs"]:
        yield ""
        yield f"most confused, by {confused['neighbours']} neighbours (cosine)"
        for one in confused["pairs"][:_WORST]:
            count = f"{one['count']} of {one['of']}"
            yield f"  {one['label']!s:<20}  taken for {one['taken_for']}: {count}"


def _verdicts(entry: Entry) -> Iterator[str]:
    """Say, last of all, whether the encoder is any better than its floors."""
    verdicts = entry.get("verdicts", {})
    if verdicts:
        yield ""
    for floor, names in verdicts.items():
        better, worse, unclear = (names[kind] for kind in ("better", "worse", "unclear"))
        yield (
            f"{floor.replace('_', ' ')}: the encoder is better in {len(better)} of "
            f"{len(better + worse + unclear)} measures, worse in {len(worse)}, "
            f"neither beyond the interval in {len(unclear)}"
        )
    below = any(len(names["worse"]) > len(names["better"]) for names in verdicts.values())
    if below and entry["pool"] in _AVERAGES:
        yield (
            f"its features are pooled over all positions (--pool {entry['pool']}); a run with "
            "--pool flatten shows what that takes away"
        )
