# SPDX-License-Identifier: Apache-2.0
"""Merges the parts, in the order of the shards, into the projector's files."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_embed import planning
from ray_embed.core.threads import OrderedMap, open_ordered_map
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, RunError
from ray_embed.projector import (
    bookmarks,
    checkpoint,
    covariance,
    merge_task,
    metadata,
    pca,
    sprite,
    staging,
)
from ray_embed.projector.merge_task import Group, Merge, Piece, merge_piece
from ray_embed.runs import integrity, stratified
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import TEMPORARY, Folder
from ray_embed.storage.lock import lock_folder

_STRATUM = ("split", "label")
# Boundaries of files follow from the plan, so that the bytes do: whole parts, about this much. Each
# thread has a few groups in memory.
_GROUP_BYTES = 16 << 20


@dataclass(frozen=True)
class _Survey:
    """What has to be known of all parts before the first of them is written."""

    groups: tuple[Group, ...]
    points: int
    strata: Counter[stratified.Stratum] | None


def reduce(out: str, limit: int | None = None, threads: int | None = None) -> int:
    """Merge the parts of a finished extraction, as the only one who writes to the run folder.

    Args, Returns and Raises: as :func:`merge`.
    """
    folder = Folder.open(out)
    if not folder.exists(layout.RUN):
        raise _no_run(out)
    with lock_folder(folder):
        return merge(out, limit, threads)


def merge(
    out: str,
    limit: int | None = None,
    threads: int | None = None,
    elsewhere: OrderedMap | None = None,
) -> int:
    """Merge the parts of a finished extraction into ``projector/``, replacing what was there.

    The PCA of all points comes first, and is written beside the features.

    Args:
        out: the run folder.
        limit: the points that TensorBoard's page is given; None for what the run was started
            with. Where there are more, a sample is written beside all of them.
        threads: how many to work on, 8 at most; None for the machine's processors. The files are
            the same with any number.
        elsewhere: does blocks and pieces on other machines; None to do them here.

    Returns:
        The number of points.

    Raises:
        InputError: no run folder.
        DamagedError: a part is not what was written.
        RunError: shards are missing, no record was embedded, or the storage fails.
    """
    folder = Folder.open(out)
    run = manifest.read_run(folder)
    if run is None or "fingerprint" not in run:
        raise _no_run(out)
    limit = limit or int(run["config"]["projector_limit"])
    outline = planning.load(folder)
    expected = integrity.Expected.from_run(run, outline)
    numbers = integrity.require_all_parts(folder, expected)
    outputs = run["encoder"]["outputs"]
    width = sum(output["dimension"] for output in outputs)
    survey = _survey(folder, numbers, width, expected, outline.records, limit)
    if survey.points == 0:
        name = redact_uri(out)
        raise RunError(
            f"{name}: every record was rejected, so there is nothing to show; see {name}/rejects",
            can_resume=False,
        )
    count = min(survey.points, limit)
    dimensions = {output["column"]: output["dimension"] for output in outputs}
    components = _components(out, run, survey, dimensions, threads, elsewhere)
    columns = tuple(dimensions)
    records = tuple(outline.schema().names)
    row = 4 * (width + sum(len(found.vectors) for found in components.values()))
    with staging.target(folder, survey.points, row) as target:
        merge = Merge(
            out,
            f"{TEMPORARY}/{target.name}" if folder.is_local else layout.PROJECTOR,
            expected.fingerprint,
            columns,
            records,
            survey.points,
            count,
            sum(group.rows > 0 for group in survey.groups) + 1,
            components,
        )
        if not folder.is_local:
            # TensorBoard sees nothing without it: it goes first and comes last.
            folder.delete(f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}")
        together = merge_task.at_once(survey.groups, width)
        with staging.writing(target), open_ordered_map(threads, together) as mapped:
            _write(merge, target, survey, mapped, elsewhere)
            _copy_evaluation(folder, expected.fingerprint, target)
            views = bookmarks.make_views(folder, lambda name: (target / name).read_bytes())
            for name, content in views.files.items():
                (target / name).write_bytes(content)
            target.chmod(0o755)
        _delete_stale(folder, numbers)
        if folder.is_local:
            folder.move(f"{TEMPORARY}/{target.name}", layout.PROJECTOR)
        else:
            staging.publish(merge, target)
    return survey.points


def _components(
    out: str,
    run: dict[str, Any],
    survey: _Survey,
    dimensions: dict[str, int],
    threads: int | None,
    elsewhere: OrderedMap | None,
) -> dict[str, pca.Components]:
    """Compute the PCA, and write it to the run folder."""
    folder, fingerprint = Folder.open(out), run["fingerprint"]
    with open_ordered_map(threads, covariance.count_parallel_blocks(dimensions.values())) as mapped:
        found = covariance.compute_components(
            out, fingerprint, survey.groups, dimensions, elsewhere or mapped
        )
    layers = {output["column"]: output["layer"] for output in run["encoder"]["outputs"]}
    pca.save(folder, {layers[column]: of_one for column, of_one in found.items()}, fingerprint)
    return found


def _copy_evaluation(folder: Folder, fingerprint: str, target: Path) -> None:
    """Copy the event file that `evaluate` has written of this run, if any."""
    # Earlier versions wrote it into the projector only.
    for name in (
        layout.EVALUATION_RECORD,
        f"{layout.PROJECTOR}/{layout.EVALUATION_EVENTS}",
    ):
        if _is_evaluation_of(folder, fingerprint) and folder.exists(name):
            (target / layout.EVALUATION_EVENTS).write_bytes(folder.read(name))
            return


def _is_evaluation_of(folder: Folder, fingerprint: str) -> bool:
    if not folder.exists(layout.EVALUATION):
        return False
    try:
        return bool(json.loads(folder.read(layout.EVALUATION))["fingerprint"] == fingerprint)
    except (ValueError, KeyError, TypeError):
        # It is damaged. Evaluating again writes it.
        return False


def _delete_stale(folder: Folder, numbers: list[int]) -> None:
    """Delete coordinates of other parts than these."""
    for number in set(part_files.list_part_numbers(folder, layout.PCA)) - set(numbers):
        folder.delete(part_files.part_name(layout.PCA, number))


def _no_run(out: str) -> InputError:
    return InputError(f"{redact_uri(out)}: not a run folder; `ray-embed extract` writes one")


def unseen(folder: Folder, points: int, limit: int | None = None) -> Iterator[str]:
    """Say what TensorBoard's page will not show of a reduced run, and how wide its PCA was made.

    Args:
        folder: the run folder.
        points: the number of its points.
        limit: as `reduce` was given it.
    """
    run = manifest.read_run(folder) or {}
    limit = limit or int(run["config"]["projector_limit"])
    if points > limit:
        yield (
            f"the page shows a sample of {limit} of the {points} points (the tensor `sample`), "
            "drawn by split and label; --projector-limit changes the number"
        )
    for output in run["encoder"]["outputs"]:
        if output["dimension"] > pca.MOST_DIMENSIONS:
            yield _method(folder, output["column"], output["dimension"])
        if points == 1 or output["dimension"] == 1:
            few = "one point" if points == 1 else "one dimension"
            yield (
                f"warning: {checkpoint.variable_of(output['column'])} has only {few}: TensorBoard "
                "lists tensors of two and more points and dimensions, so it will not show it"
            )


def _method(folder: Folder, column: str, dimension: int) -> str:
    """Say how the PCA of features with many dimensions was computed, and how exact it is."""
    method, error = pca.load_method(folder, column)
    name = layout.pca_column(column)
    if method.name == pca.GRAM:
        return f"{name}: exact PCA of {dimension:,} dimensions, from the products of the records"
    return (
        f"{name}: approximate PCA of {dimension:,} dimensions (block Krylov, {method.passes} "
        f"passes); the variance of each of the {len(method.residuals)} components is within "
        f"{100 * error:.2g} % of an exact one"
    )


def _survey(
    folder: Folder,
    numbers: list[int],
    width: int,
    expected: integrity.Expected,
    planned: int | None,
    limit: int,
) -> _Survey:
    """Read the footers, and count the strata if there may be more points than are shown."""
    strata = None if planned is not None and planned <= limit else stratified.Strata(limit)
    columns = list(_STRATUM) if strata else []
    groups: list[Group] = []
    waiting: list[int] = []
    start = rows = weight = files = 0

    def look(number: int) -> tuple[part_files.Footer, pa.Table | None]:
        found = part_files.read_footer_and_columns(folder, number, columns)
        integrity.check_footer(folder, number, found[0], expected)
        return found

    looked_at = zip(numbers, part_files.map_parts(folder, look, numbers), strict=True)
    for number, (about, table) in looked_at:
        if strata and table is not None:
            strata.add(table)
        waiting.append(number)
        rows += about.rows
        weight += about.planned * width * 4
        if weight >= _GROUP_BYTES or number == numbers[-1]:
            # One without rows has no file, as one without slices is an error.
            groups.append(Group(files, tuple(waiting), start, rows - start))
            files += rows > start
            waiting, start, weight = [], rows, 0
    return _Survey(tuple(groups), rows, strata.counts if strata and rows > limit else None)


def _write(
    merge: Merge, target: Path, survey: _Survey, mapped: OrderedMap, elsewhere: OrderedMap | None
) -> None:
    everything = [checkpoint.variable_of(column) for column in merge.columns]
    sampled = survey.strata is not None
    shown = [checkpoint.sampled(name) if sampled else name for name in everything]
    drawn: list[stratified.Rows] = []
    files = [layout.METADATA, layout.SAMPLE] if sampled else [layout.METADATA]
    indexes: list[bytes] = []
    with contextlib.ExitStack() as stack:
        writers = [
            metadata.Writer(
                stack.enter_context(open(target / name, "wb")),
                metadata.columns_of(merge.records),
            )
            for name in files
        ]
        pieces = _pieces(merge, survey, drawn)
        for merged in (elsewhere or mapped)(partial(merge_piece, merge), pieces):
            indexes += [] if merged.index is None else [merged.index]
            for writer, text in zip(writers, merged.texts, strict=True):
                writer.add(text)
        for writer in writers:
            writer.end()
    shown += merge.views.values()
    # What is drawn or computed from them restores nothing.
    checkpoint.write_checkpoint(target, everything, indexes)
    side = sprite.sprite_cell(merge.shown)
    if side:
        pngs = _thumbnails(merge, survey.groups, drawn, mapped)
        sprite.write_sprite(target / "sprite.png", merge.shown, pngs, mapped)
    checkpoint.write_config(target / layout.PROJECTOR_CONFIG, shown, files[-1], side)
    checkpoint.write_event_file(target)


def _pieces(merge: Merge, survey: _Survey, drawn: list[stratified.Rows]) -> Iterator[Piece]:
    """Draw the sample, group after group; what is drawn of each part is put into `drawn` too."""
    if survey.strata is None:
        yield from map(Piece, survey.groups)
        return
    draw = stratified.Draw(survey.strata, merge.shown)
    numbers = [number for group in survey.groups for number in group.parts]
    read = partial(_strata_of, merge)
    tables = part_files.map_parts(merge.folder, read, numbers)
    first = 0
    for group in survey.groups:
        rows = tuple(draw.take(next(tables)) for _ in group.parts)
        drawn += rows
        yield Piece(group, rows, first)
        first += sum(map(len, rows))


def _strata_of(merge: Merge, number: int) -> pa.Table:
    return part_files.read_part(merge.folder, layout.FEATURES, number, list(_STRATUM))


def _thumbnails(
    merge: Merge, groups: tuple[Group, ...], drawn: list[stratified.Rows], mapped: OrderedMap
) -> Iterator[bytes]:
    """Give the picture of each point shown."""
    numbers = [number for group in groups for number in group.parts]

    def pictures(at: int) -> list[bytes]:
        number = numbers[at]
        part = part_files.read_part(
            merge.folder, layout.THUMBNAILS, number, ["png"], merge.fingerprint
        )
        pngs = part["png"]
        content: list[bytes] = (pngs.take(pa.array(drawn[at])) if drawn else pngs).to_pylist()
        return content

    for content in mapped(pictures, range(len(numbers))):
        yield from content
