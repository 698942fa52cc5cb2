# SPDX-License-Identifier: Apache-2.0
"""Merges the parts, in the order of the shards, into the projector's files."""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from ray_embed import description, metadata, plan, projector, sample, soundness, sprite, store
from ray_embed.ahead import Mapped, mapping
from ray_embed.alone import alone
from ray_embed.errors import InputError, RunError, StorageError, first_line
from ray_embed.filesystem import TEMPORARY, Folder
from ray_embed.merging import Group, Merge, Merged, Piece, merge_piece
from ray_embed.scratch import check_space
from ray_embed.uri import shown

PROJECTOR = "projector"
METADATA, SAMPLE = "metadata.tsv", "sample.tsv"
_STRATUM = ("split", "label")
# A line of the metadata, about.
_LINE_BYTES = 128
# Boundaries of files follow from the plan, so that the bytes do: whole parts, about this much. Each
# thread has a few groups in memory.
_GROUP_BYTES = 16 << 20


@dataclass(frozen=True)
class _Survey:
    """What has to be known of all parts before the first of them is written."""

    groups: tuple[Group, ...]
    points: int
    strata: Counter[sample.Stratum] | None


# What does pieces elsewhere, giving what came of them in order.
Elsewhere = Callable[[Merge, Iterable[Piece]], Iterator[Merged]]


def reduce(out: str, limit: int | None = None, threads: int | None = None) -> int:
    """Merge the parts of a finished extraction, as the only one who writes to the run folder.

    Args, Returns and Raises: as :func:`merge`.
    """
    folder = Folder.at(out)
    if not folder.exists(description.RUN):
        raise _no_run(out)
    with alone(folder):
        return merge(out, limit, threads)


def merge(
    out: str,
    limit: int | None = None,
    threads: int | None = None,
    elsewhere: Elsewhere | None = None,
) -> int:
    """Merge the parts of a finished extraction into ``projector/``, replacing what was there.

    Args:
        out: the run folder.
        limit: the points that TensorBoard's page is given; None for what the run was started
            with. Where there are more, a sample is written beside all of them.
        threads: how many to work on, 8 at most; None for the machine's processors. The files are
            the same with any number.
        elsewhere: does the pieces on other machines; None to do them here.

    Returns:
        The number of points.

    Raises:
        InputError: no run folder.
        DamagedError: a part is not what was written.
        RunError: shards are missing, no record was embedded, or the storage fails.
    """
    folder = Folder.at(out)
    run = description.read_run(folder)
    if run is None or "fingerprint" not in run:
        raise _no_run(out)
    limit = limit or int(run["config"]["projector_limit"])
    outline = plan.load(folder)
    expected = soundness.Expected.of(run, outline)
    numbers = _all_parts(folder, expected)
    outputs = run["encoder"]["outputs"]
    width = sum(output["dimension"] for output in outputs)
    survey = _survey(folder, numbers, width, expected, outline.records, limit)
    if survey.points == 0:
        name = shown(out)
        raise RunError(
            f"{name}: every record was rejected, so there is nothing to show; see {name}/rejects",
            goes_on=False,
        )
    count = min(survey.points, limit)
    columns = tuple(output["column"] for output in outputs)
    records = tuple(outline.schema().names)
    with _target(folder, survey.points, width * 4) as target:
        merge = Merge(
            out,
            f"{TEMPORARY}/{target.name}" if folder.is_local else PROJECTOR,
            expected.fingerprint,
            columns,
            records,
            survey.points,
            count,
            sum(group.rows > 0 for group in survey.groups) + 1,
        )
        if not folder.is_local:
            # TensorBoard sees nothing without it: it goes first and comes last.
            folder.delete(f"{PROJECTOR}/{projector.CONFIG}")
        with _writing(target), mapping(threads) as mapped:
            _write(merge, target, survey, mapped, elsewhere)
            target.chmod(0o755)
        if folder.is_local:
            folder.move(f"{TEMPORARY}/{target.name}", PROJECTOR)
        else:
            _publish(merge, target)
    return survey.points


@contextlib.contextmanager
def _target(folder: Folder, points: int, row: int) -> Iterator[Path]:
    """Give a new local folder for the projector's files, which is gone afterwards.

    It lies in the run folder, to be renamed; or in the machine's scratch, for all but the data
    files, which go away one by one.

    Raises:
        RunError: there is no room for `points` of `row` bytes each, and their metadata.
        StorageError: it cannot be made.
    """
    base = Path(folder.join(TEMPORARY)) if folder.is_local else Path(tempfile.gettempdir())
    with _writing(base):
        base.mkdir(parents=True, exist_ok=True)
        if folder.is_local:
            for left in base.glob("projector-*"):
                # By a merge in an actor that was killed.
                shutil.rmtree(left, ignore_errors=True)
        waiting = points * row if folder.is_local else min(points * row, 32 * _GROUP_BYTES)
        check_space(base, waiting + points * _LINE_BYTES, "the projector's files")
        target = Path(tempfile.mkdtemp(prefix="projector-", dir=base))
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _publish(merge: Merge, target: Path) -> None:
    """Put the projector's files, whose data is there, into a run folder on an object store."""
    folder = merge.folder
    files = {path.name: path for path in target.iterdir()}
    data = {projector.data_file(number, merge.files) for number in range(merge.files)}
    for info in folder.infos(PROJECTOR):
        if info.base_name not in files and info.base_name not in data:
            folder.delete(f"{PROJECTOR}/{info.base_name}")
    config = files.pop(projector.CONFIG)
    for name, path in sorted(files.items()):
        folder.put(path, f"{PROJECTOR}/{name}")
    folder.put(config, f"{PROJECTOR}/{projector.CONFIG}")


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Let errors of the storage be such, whoever finds them: TensorFlow has its own.

    Raises:
        StorageError: instead of them.
    """
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise StorageError(f"{target}: cannot be written: {first_line(error)}") from error


def _no_run(out: str) -> InputError:
    return InputError(f"{shown(out)}: not a run folder; `ray-embed extract` writes one")


def unseen(folder: Folder, points: int, limit: int | None = None) -> Iterator[str]:
    """Say what TensorBoard's page will not show of a reduced run.

    Args:
        folder: the run folder.
        points: the number of its points.
        limit: as `reduce` was given it.
    """
    run = description.read_run(folder) or {}
    limit = limit or int(run["config"]["projector_limit"])
    if points > limit:
        yield (
            f"the page shows a sample of {limit} of the {points} points (the tensor `sample`), "
            "drawn by split and label; --projector-limit changes the number"
        )
    for output in run["encoder"]["outputs"]:
        if points == 1 or output["dimension"] == 1:
            few = "one point" if points == 1 else "one dimension"
            yield (
                f"warning: {projector.variable_of(output['column'])} has only {few}: TensorBoard "
                "lists tensors of two and more points and dimensions, so it will not show it"
            )


def _all_parts(folder: Folder, expected: soundness.Expected) -> list[int]:
    numbers = list(store.part_numbers(folder))
    shards = expected.shards
    if shards is not None and numbers and numbers[-1] >= shards:
        soundness.check_footers(folder, expected)
    if shards is None or numbers != list(range(shards)):
        done = len(numbers) if shards is None else len(set(numbers) & set(range(shards)))
        raise RunError(
            f"{folder.shown()}: only {done} of {'?' if shards is None else shards} shards are "
            "done; run `ray-embed extract` (or `run`) again with the same options to do the rest"
        )
    return numbers


def _survey(
    folder: Folder,
    numbers: list[int],
    width: int,
    expected: soundness.Expected,
    planned: int | None,
    limit: int,
) -> _Survey:
    """Read the footers, and count the strata if there may be more points than are shown."""
    strata = None if planned is not None and planned <= limit else sample.Strata(limit)
    columns = list(_STRATUM) if strata else []
    groups: list[Group] = []
    waiting: list[int] = []
    start = rows = weight = files = 0

    def look(number: int) -> tuple[store.About, pa.Table | None]:
        found = store.survey(folder, number, columns)
        soundness.check_about(folder, number, found[0], expected)
        return found

    looked_at = zip(numbers, store.each(folder, look, numbers), strict=True)
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
    merge: Merge, target: Path, survey: _Survey, mapped: Mapped, elsewhere: Elsewhere | None
) -> None:
    everything = [projector.variable_of(column) for column in merge.columns]
    sampled = survey.strata is not None
    shown = [projector.sampled(name) for name in everything] if sampled else everything
    drawn: list[sample.Rows] = []
    files = [METADATA, SAMPLE] if sampled else [METADATA]
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
        done = (
            elsewhere(merge, pieces) if elsewhere else mapped(partial(merge_piece, merge), pieces)
        )
        for merged in done:
            indexes += [] if merged.index is None else [merged.index]
            for writer, text in zip(writers, merged.texts, strict=True):
                writer.add(text)
        for writer in writers:
            writer.end()
    variables = list(dict.fromkeys([*everything, *shown]))
    projector.write_checkpoint(target, variables, indexes)
    side = sprite.sprite_cell(merge.shown)
    if side:
        pngs = _thumbnails(merge, survey.groups, drawn, mapped)
        sprite.write_sprite(target / "sprite.png", merge.shown, pngs, mapped)
    projector.write_config(target / projector.CONFIG, shown, files[-1], side)
    projector.write_event_file(target)


def _pieces(merge: Merge, survey: _Survey, drawn: list[sample.Rows]) -> Iterator[Piece]:
    """Draw the sample, group after group; what is drawn of each part is put into `drawn` too."""
    if survey.strata is None:
        yield from map(Piece, survey.groups)
        return
    draw = sample.Draw(survey.strata, merge.shown)
    numbers = [number for group in survey.groups for number in group.parts]
    read = partial(_strata_of, merge)
    tables = store.each(merge.folder, read, numbers)
    first = 0
    for group in survey.groups:
        rows = tuple(draw.of(next(tables)) for _ in group.parts)
        drawn += rows
        yield Piece(group, rows, first)
        first += sum(map(len, rows))


def _strata_of(merge: Merge, number: int) -> pa.Table:
    return store.read_part(merge.folder, store.FEATURES, number, list(_STRATUM))


def _thumbnails(
    merge: Merge, groups: tuple[Group, ...], drawn: list[sample.Rows], mapped: Mapped
) -> Iterator[bytes]:
    """Give the picture of each point shown."""
    numbers = [number for group in groups for number in group.parts]

    def pictures(at: int) -> list[bytes]:
        number = numbers[at]
        part = store.read_part(merge.folder, store.THUMBNAILS, number, ["png"], merge.fingerprint)
        pngs = part["png"]
        content: list[bytes] = (pngs.take(pa.array(drawn[at])) if drawn else pngs).to_pylist()
        return content

    for content in mapped(pictures, range(len(numbers))):
        yield from content
