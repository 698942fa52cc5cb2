# SPDX-License-Identifier: Apache-2.0
"""Merges the parts, in the order of the shards, into the projector's files."""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_embed import metadata, plan, projector, sample, sprite, store
from ray_embed.ahead import Mapped, mapping
from ray_embed.alone import alone
from ray_embed.errors import InputError, RunError, StorageError, first_line
from ray_embed.filesystem import TEMPORARY, Folder
from ray_embed.matrix import as_matrix
from ray_embed.scratch import check_space
from ray_embed.uri import shown

PROJECTOR = "projector"
METADATA, SAMPLE = "metadata.tsv", "sample.tsv"
# Boundaries of files follow from the plan, so that the bytes do: whole parts, about this much. Each
# thread has a few groups in memory.
_GROUP_BYTES = 16 << 20


@dataclass(frozen=True)
class _Group:
    """Consecutive parts that become one file of slices, and the rows before them."""

    number: int
    parts: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class _Read:
    """A group's parts, and the rows drawn of each; `first` is the number drawn before them."""

    group: _Group
    tables: list[pa.Table]
    drawn: list[sample.Rows]
    first: int


@dataclass(frozen=True)
class _Survey:
    """What has to be known of all parts before the first of them is written."""

    groups: tuple[_Group, ...]
    points: int
    strata: Counter[sample.Stratum] | None


@dataclass(frozen=True)
class _Merge:
    """One merge: from which parts, into which folder, and how much is shown."""

    folder: Folder
    target: Path
    fingerprint: str
    columns: tuple[str, ...]
    records: tuple[str, ...]
    points: int
    shown: int


def reduce(out: str, limit: int | None = None, threads: int | None = None) -> int:
    """Merge the parts of a finished extraction, as the only one who writes to the run folder.

    Args, Returns and Raises: as :func:`merge`.
    """
    folder = Folder.at(out)
    if not folder.exists(store.RUN):
        raise _no_run(out)
    with alone(folder):
        return merge(out, limit, threads)


def merge(out: str, limit: int | None = None, threads: int | None = None) -> int:
    """Merge the parts of a finished extraction into ``projector/``, replacing what was there.

    Args:
        out: the run folder.
        limit: the points that TensorBoard's page is given; None for what the run was started
            with. Where there are more, a sample is written beside all of them.
        threads: how many to work on, 8 at most; None for the machine's processors. The files are
            the same with any number.

    Returns:
        The number of points.

    Raises:
        InputError: no run folder.
        DamagedError: a part is not what was written.
        RunError: shards are missing, no record was embedded, or the storage fails.
    """
    folder = Folder.at(out)
    run = store.read_run(folder)
    if run is None or "fingerprint" not in run:
        raise _no_run(out)
    limit = limit or int(run["config"]["projector_limit"])
    outline = plan.load(folder)
    expected = store.Expected.of(run, outline)
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
    with _target(folder, survey.points * width * 4) as target:
        merge = _Merge(folder, target, expected.fingerprint, columns, records, survey.points, count)
        with _writing(target), mapping(threads) as mapped:
            _write(merge, survey, mapped)
            target.chmod(0o755)
        if folder.is_local:
            folder.move(f"{TEMPORARY}/{target.name}", PROJECTOR)
        else:
            _publish(folder, target)
    return survey.points


@contextlib.contextmanager
def _target(folder: Folder, size: int) -> Iterator[Path]:
    """Give a new local folder for the projector's files, which is gone afterwards.

    It lies in the run folder, to be renamed; or in the machine's scratch, to be put away.

    Raises:
        RunError: there is no room for `size` bytes.
        StorageError: it cannot be made.
    """
    base = Path(folder.join(TEMPORARY)) if folder.is_local else Path(tempfile.gettempdir())
    with _writing(base):
        base.mkdir(parents=True, exist_ok=True)
        if folder.is_local:
            for left in base.glob("projector-*"):
                # By a merge in an actor that was killed.
                shutil.rmtree(left, ignore_errors=True)
        check_space(base, size, "the projector's files")
        target = Path(tempfile.mkdtemp(prefix="projector-", dir=base))
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _publish(folder: Folder, target: Path) -> None:
    """Put the projector's files into a run folder on an object store.

    TensorBoard sees nothing without the configuration, which goes first and comes last.
    """
    folder.delete(f"{PROJECTOR}/{projector.CONFIG}")
    files = {path.name: path for path in target.iterdir()}
    for info in folder.infos(PROJECTOR):
        if info.base_name not in files:
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
    run = store.read_run(folder) or {}
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


def _all_parts(folder: Folder, expected: store.Expected) -> list[int]:
    numbers = list(store.part_numbers(folder))
    shards = expected.shards
    if shards is not None and numbers and numbers[-1] >= shards:
        store.check_footers(folder, expected)
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
    expected: store.Expected,
    planned: int | None,
    limit: int,
) -> _Survey:
    """Read the footers, and count the strata if there may be more points than are shown."""
    strata = None if planned is not None and planned <= limit else sample.Strata(limit)
    groups: list[_Group] = []
    waiting: list[int] = []
    tables: list[pa.Table] = []
    start = rows = weight = 0
    for number in numbers:
        about, table = store.survey(folder, number, ["split", "label"] if strata else [])
        store.check_about(folder, number, about, expected)
        tables += [] if table is None else [table]
        waiting.append(number)
        rows += about.rows
        weight += about.planned * width * 4
        if weight >= _GROUP_BYTES or number == numbers[-1]:
            groups.append(_Group(len(groups), tuple(waiting), start))
            if strata:
                strata.add(pa.concat_tables(tables))
            waiting, tables, start, weight = [], [], rows, 0
    return _Survey(tuple(groups), rows, strata.counts if strata and rows > limit else None)


def _write(merge: _Merge, survey: _Survey, mapped: Mapped) -> None:
    everything = [projector.variable_of(column) for column in merge.columns]
    sampled = survey.strata is not None
    shown = [_sampled(name) for name in everything] if sampled else everything
    drawn: list[sample.Rows] = []
    files = [METADATA, SAMPLE] if sampled else [METADATA]
    prefixes: list[str] = []
    with contextlib.ExitStack() as stack:
        writers = [
            metadata.Writer(
                stack.enter_context(open(merge.target / name, "wb")),
                metadata.columns_of(merge.records),
            )
            for name in files
        ]
        reads = _drawn(mapped(partial(_read, merge), survey.groups), survey, merge.shown, drawn)
        for prefix, texts in mapped(partial(_merged, merge), reads):
            prefixes += prefix
            for writer, text in zip(writers, texts, strict=True):
                writer.add(text)
        for writer in writers:
            writer.end()
    variables = list(dict.fromkeys([*everything, *shown]))
    projector.write_checkpoint(merge.target, variables, prefixes)
    side = sprite.sprite_cell(merge.shown)
    if side:
        pngs = _thumbnails(merge, survey.groups, drawn, mapped)
        sprite.write_sprite(merge.target / "sprite.png", merge.shown, pngs, mapped)
    projector.write_config(merge.target / projector.CONFIG, shown, files[-1], side)
    projector.write_event_file(merge.target)


def _read(merge: _Merge, group: _Group) -> tuple[_Group, list[pa.Table]]:
    tables = [store.read_part(merge.folder, store.FEATURES, number) for number in group.parts]
    return group, tables


def _drawn(
    reads: Iterator[tuple[_Group, list[pa.Table]]],
    survey: _Survey,
    limit: int,
    drawn: list[sample.Rows],
) -> Iterator[_Read]:
    """Draw the sample, group after group; what is drawn of each part is put into `drawn` too."""
    draw = None if survey.strata is None else sample.Draw(survey.strata, limit)
    first = 0
    for group, tables in reads:
        rows = _by_part(draw, tables) if draw else []
        drawn += rows
        yield _Read(group, tables, rows, first)
        first += sum(map(len, rows))


def _by_part(draw: sample.Draw, tables: list[pa.Table]) -> list[sample.Rows]:
    """Draw from a group at once; give the positions in each of its parts."""
    rows = draw.of(pa.concat_tables([table.select(["split", "label"]) for table in tables]))
    starts = np.cumsum([0, *map(len, tables)])[:-1]
    parts = np.split(rows, np.searchsorted(rows, starts[1:]))
    return [part - start for part, start in zip(parts, starts, strict=True)]


def _merged(merge: _Merge, read: _Read) -> tuple[list[str], list[bytes]]:
    """Write a group's slices; give where they are, and the lines of the metadata files."""
    slices = list(_slices(merge, read))
    # A file without slices is an error.
    prefixes = [projector.write_slices(merge.target, read.group.number, slices)] if slices else []
    records = pa.concat_tables([table.select(merge.records) for table in read.tables])
    texts = [metadata.lines(records)]
    if read.drawn:
        starts = np.cumsum([0, *map(len, read.tables)])[:-1]
        rows = [at + start for at, start in zip(read.drawn, starts, strict=True)]
        texts.append(metadata.lines(records.take(pa.array(np.concatenate(rows)))))
    return prefixes, texts


def _slices(merge: _Merge, read: _Read) -> Iterator[projector.Slice]:
    """Give a slice a part of each variable, and one a group of its sample."""
    for column in merge.columns:
        name = projector.variable_of(column)
        parts = [as_matrix(table[column]) for table in read.tables]
        start = read.group.start
        for part in parts:
            if len(part):
                yield projector.Slice(name, start, merge.points, part)
            start += len(part)
        if any(map(len, read.drawn)):
            values = [part[at] for part, at in zip(parts, read.drawn, strict=True)]
            rows = np.concatenate(values)
            yield projector.Slice(_sampled(name), read.first, merge.shown, rows)


def _thumbnails(
    merge: _Merge, groups: tuple[_Group, ...], drawn: list[sample.Rows], mapped: Mapped
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


def _sampled(variable: str) -> str:
    return "sample" + variable.removeprefix("embedding")
