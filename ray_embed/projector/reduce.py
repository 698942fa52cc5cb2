# SPDX-License-Identifier: Apache-2.0
"""Merge the parts, in the order of the shards, into the files of TensorBoard's projector."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from ray_embed import planning
from ray_embed.core.threads import OrderedMap, open_ordered_map
from ray_embed.core.uri import redact_uri
from ray_embed.errors import RunError
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
from ray_embed.projector.merge_task import MergeSettings, MergeTask, PartGroup, merge_parts
from ray_embed.runs import integrity, stratified
from ray_embed.runs.label_frequencies import rank_labels
from ray_embed.runs.reader import RunReader, open_run
from ray_embed.sources.label_lists import LABEL_LIST
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import TEMPORARY, Folder
from ray_embed.storage.lock import lock_folder

_STRATUM = ("split", "label")
# A data file holds whole parts, with about this many bytes in total. Its boundaries therefore
# depend only on the plan, and so do its bytes. Each thread holds a few groups in memory.
_GROUP_BYTES = 16 << 20
_SPRITE = "sprite.png"
# TensorBoard can color by each of these columns.
_MARKED_LABELS = 20


@dataclass(frozen=True)
class _Survey:
    """What must be known about all parts before the first data file is written."""

    groups: tuple[PartGroup, ...]
    points: int
    strata: Counter[stratified.Stratum] | None


def reduce(out: str, limit: int | None = None, threads: int | None = None) -> int:
    """Merge the parts of a finished run for TensorBoard's projector, with the run folder locked.

    Args:
        out: the run folder.
        limit: the maximum number of points on TensorBoard's page. If None, the value that the run
            was started with. If there are more points, a sample is also written.
        threads: the number of threads, at most 8; None for the number of processors.

    Returns:
        The number of points.

    Raises:
        InputError: it is not a run folder.
        RunError: shards are missing, no record was embedded, a part is damaged, or the storage
            fails.
    """
    with lock_folder(open_run(out).folder):
        return merge(out, limit, threads)


def merge(
    out: str,
    limit: int | None = None,
    threads: int | None = None,
    remote_map: OrderedMap | None = None,
    siblings: Sequence[str] = (),
) -> int:
    """Merge the parts of a finished extraction into ``projector/``, replacing what was there.

    The PCA of all points is computed first, and written alongside the features.

    Args:
        out: the run folder.
        limit: the maximum number of points on TensorBoard's page. If None, the value that the run
            was started with. If there are more points, a sample is also written.
        threads: the number of threads, at most 8. If None, the number of processors. The files are
            the same for any number.
        remote_map: an ordered map that processes blocks and tasks on other machines. If None,
            everything is done on this one.
        siblings: runs with the same records that were merged with the same `limit`. The sprite of
            one that has the same thumbnails is linked.

    Returns:
        The number of points.

    Raises:
        InputError: it is not a run folder.
        DamagedError: a part differs from what was written.
        RunError: shards are missing, no record was embedded, or the storage fails.
    """
    run = open_run(out)
    folder = run.folder
    limit = limit or int(run.config["projector_limit"])
    plan = planning.load(folder)
    expected = integrity.Expected.from_run(run.manifest, plan)
    numbers = integrity.require_all_parts(folder, expected)
    width = sum(output.dimension for output in run.outputs)
    survey = _survey_parts(folder, numbers, width, expected, plan.records, limit)
    if survey.points == 0:
        name = redact_uri(out)
        raise RunError(
            f"{name}: all records were rejected, so there is nothing to show; see {name}/rejects",
            can_resume=False,
        )
    components = _compute_components(out, run, survey, threads, remote_map)
    row_bytes = 4 * (width + sum(len(each.vectors) for each in components.values()))
    with staging.target(folder, survey.points, row_bytes) as target:
        settings = MergeSettings(
            out=out,
            target=f"{TEMPORARY}/{target.name}" if folder.is_local else layout.PROJECTOR,
            fingerprint=run.fingerprint,
            thumbnail_fingerprint=run.thumbnail_fingerprint,
            columns=tuple(output.column for output in run.outputs),
            records=tuple(plan.schema().names),
            points=survey.points,
            shown=min(survey.points, limit),
            files=sum(group.rows > 0 for group in survey.groups) + 1,
            components=components,
            marked=_choose_marked(folder, plan),
        )
        if not folder.is_local:
            # TensorBoard shows no projector without it, so it is deleted first and written last.
            folder.delete(f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}")
        together = merge_task.count_parallel_tasks(survey.groups, width)
        with staging.writing(target), open_ordered_map(threads, together) as local_map:
            _write_projector(settings, target, survey, local_map, remote_map, siblings)
            _copy_evaluation(run, target)
            views = bookmarks.make_bookmarks(run, lambda name: (target / name).read_bytes())
            for name, content in views.files.items():
                (target / name).write_bytes(content)
            target.chmod(0o755)
        _delete_stale(folder, numbers)
        if folder.is_local:
            folder.move(f"{TEMPORARY}/{target.name}", layout.PROJECTOR)
        else:
            staging.publish(settings, target)
    return survey.points


def _choose_marked(folder: Folder, plan: planning.Plan) -> tuple[str, ...]:
    """Choose the labels that get a column of metadata: the most frequent ones of lists."""
    if plan.schema().field("label").type != LABEL_LIST:
        return ()
    labels = [
        label for label in rank_labels(folder) if metadata.name_mark(label) not in plan.extras
    ]
    return tuple(labels[:_MARKED_LABELS])


def _compute_components(
    out: str,
    run: RunReader,
    survey: _Survey,
    threads: int | None,
    remote_map: OrderedMap | None,
) -> dict[str, pca.Components]:
    """Compute the PCA of each layer, and write it to the run folder; return it by column."""
    dimensions = {output.column: output.dimension for output in run.outputs}
    with open_ordered_map(
        threads, covariance.count_parallel_blocks(dimensions.values())
    ) as local_map:
        components = covariance.compute_components(
            out, run.fingerprint, survey.groups, dimensions, remote_map or local_map
        )
    by_layer = {output.layer: components[output.column] for output in run.outputs}
    pca.save(run.folder, by_layer, run.fingerprint)
    return components


def _copy_evaluation(run: RunReader, target: Path) -> None:
    """Copy the event file that `evaluate` has written for this run, if any."""
    if not run.read_evaluation():
        return
    # Earlier versions wrote the file only into the projector folder.
    for name in (layout.EVALUATION_EVENTS, f"{layout.PROJECTOR}/{layout.PROJECTOR_EVALUATION}"):
        if run.folder.exists(name):
            (target / layout.PROJECTOR_EVALUATION).write_bytes(run.folder.read(name))
            return


def _delete_stale(folder: Folder, numbers: list[int]) -> None:
    """Delete PCA parts whose shard is not in `numbers`."""
    for number in set(part_files.list_part_numbers(folder, layout.PCA)) - set(numbers):
        folder.delete(part_files.part_name(layout.PCA, number))


def describe_limits(run: str, points: int, limit: int | None = None) -> Iterator[str]:
    """Yield notes about what TensorBoard's page does not show, and about PCAs of many dimensions.

    Args:
        run: the run folder.
        points: the number of its points.
        limit: the limit that was passed to :func:`merge`.
    """
    reader = open_run(run)
    limit = limit or int(reader.config["projector_limit"])
    if points > limit:
        yield (
            f"the page shows a sample of {limit} of the {points} points (the tensor `sample`), "
            "drawn by split and label; --projector-limit changes the number"
        )
    for output in reader.outputs:
        if output.dimension > pca.MAX_EXACT_DIMENSIONS:
            yield _describe_pca(reader.folder, output.column, output.dimension)
        if points == 1 or output.dimension == 1:
            few = "one point" if points == 1 else "one dimension"
            yield (
                f"warning: {checkpoint.get_variable_name(output.column)} has only {few}: "
                "TensorBoard lists tensors of two and more points and dimensions, so it will not "
                "show it"
            )


def _describe_pca(folder: Folder, column: str, dimension: int) -> str:
    """Describe how the PCA of features with many dimensions was computed, and its error."""
    method, error = pca.load_method(folder, column)
    name = layout.pca_column(column)
    if method.name == pca.GRAM:
        return f"{name}: exact PCA of {dimension:,} dimensions, from the products of the records"
    return (
        f"{name}: approximate PCA of {dimension:,} dimensions (block Krylov, {method.passes} "
        f"passes); the variance of each of the {len(method.residuals)} components is within "
        f"{100 * error:.2g} % of an exact one"
    )


def _survey_parts(
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
    groups: list[PartGroup] = []
    waiting: list[int] = []
    start = rows = weight = files = 0

    def read_footer(number: int) -> tuple[part_files.Footer, pa.Table | None]:
        footer, table = part_files.read_footer_and_columns(folder, number, columns)
        integrity.check_footer(folder, number, footer, expected)
        return footer, table

    footers = zip(numbers, part_files.map_parts(folder, read_footer, numbers), strict=True)
    for number, (footer, table) in footers:
        if strata and table is not None:
            strata.add(table)
        waiting.append(number)
        rows += footer.rows
        weight += footer.planned * width * 4
        if weight >= _GROUP_BYTES or number == numbers[-1]:
            # A group without rows has no data file, as TensorFlow refuses one without slices.
            groups.append(PartGroup(files, tuple(waiting), start, rows - start))
            files += rows > start
            waiting, start, weight = [], rows, 0
    return _Survey(tuple(groups), rows, strata.counts if strata and rows > limit else None)


def _write_projector(
    settings: MergeSettings,
    target: Path,
    survey: _Survey,
    local_map: OrderedMap,
    remote_map: OrderedMap | None,
    siblings: Sequence[str],
) -> None:
    """Write the metadata, checkpoint, sprite and configuration into `target`."""
    variables = [checkpoint.get_variable_name(column) for column in settings.columns]
    is_sampled = survey.strata is not None
    shown = [checkpoint.sampled(name) if is_sampled else name for name in variables]
    drawn: list[stratified.Rows] = []
    files = [layout.METADATA, layout.SAMPLE] if is_sampled else [layout.METADATA]
    indexes: list[bytes] = []
    with contextlib.ExitStack() as stack:
        writers = [
            metadata.Writer(
                stack.enter_context(open(target / name, "wb")),
                [
                    *metadata.order_columns(settings.records),
                    *map(metadata.name_mark, settings.marked),
                ],
            )
            for name in files
        ]
        tasks = _make_tasks(settings, survey, drawn)
        for merged in (remote_map or local_map)(partial(merge_parts, settings), tasks):
            indexes += [] if merged.index is None else [merged.index]
            for writer, text in zip(writers, merged.texts, strict=True):
                writer.add(text)
        for writer in writers:
            writer.end()
    shown += settings.views.values()
    # Only `variables` can be restored with `tf.train.Checkpoint`; samples and PCA are for display.
    checkpoint.write_checkpoint(target, variables, indexes)
    side = sprite.choose_cell_size(settings.shown)
    if side and not _link_sprite(settings.folder, target, survey.groups, siblings):
        pngs = _read_thumbnails(settings, survey.groups, drawn, local_map)
        sprite.write_sprite(target / _SPRITE, settings.shown, pngs, local_map)
    checkpoint.write_config(target / layout.PROJECTOR_CONFIG, shown, files[-1], side)
    checkpoint.write_event_file(target)


def _link_sprite(
    folder: Folder, target: Path, groups: tuple[PartGroup, ...], siblings: Sequence[str]
) -> bool:
    """Link the sprite of a sibling whose thumbnails are the same files.

    Returns:
        False if there is none, or if the file system has no hard links.
    """
    if not folder.is_local:
        return False
    names = [
        part_files.part_name(layout.THUMBNAILS, number)
        for group in groups
        for number in group.parts
    ]
    for sibling in map(Folder.open, siblings):
        with contextlib.suppress(OSError):
            if all(Path(folder.join(name)).samefile(sibling.join(name)) for name in names):
                os.link(sibling.join(f"{layout.PROJECTOR}/{_SPRITE}"), target / _SPRITE)
                return True
    return False


def _make_tasks(
    settings: MergeSettings, survey: _Survey, drawn: list[stratified.Rows]
) -> Iterator[MergeTask]:
    """Draw the sample, group by group, and append the rows drawn from each part to `drawn`."""
    if survey.strata is None:
        yield from map(MergeTask, survey.groups)
        return
    draw = stratified.Draw(survey.strata, settings.shown)
    numbers = [number for group in survey.groups for number in group.parts]
    read = partial(_read_strata, settings)
    tables = part_files.map_parts(settings.folder, read, numbers)
    first = 0
    for group in survey.groups:
        rows = tuple(draw.take(next(tables)) for _ in group.parts)
        drawn += rows
        yield MergeTask(group, rows, first)
        first += sum(map(len, rows))


def _read_strata(settings: MergeSettings, number: int) -> pa.Table:
    return part_files.read_part(settings.folder, layout.FEATURES, number, list(_STRATUM))


def _read_thumbnails(
    settings: MergeSettings,
    groups: tuple[PartGroup, ...],
    drawn: list[stratified.Rows],
    local_map: OrderedMap,
) -> Iterator[bytes]:
    """Yield the thumbnail of each point that is shown."""
    numbers = [number for group in groups for number in group.parts]

    def read_part(position: int) -> list[bytes]:
        rows = drawn[position] if drawn else None
        return part_files.read_thumbnails(
            settings.folder, numbers[position], rows, settings.thumbnail_fingerprint
        )

    for content in local_map(read_part, range(len(numbers))):
        yield from content
