# SPDX-License-Identifier: Apache-2.0
"""``ray-embed plot``: draw a run's features, and save maps for TensorBoard's page."""

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_label_kind, convert_labels
from ray_embed.analysis.evaluation.spectrum import narrow_features
from ray_embed.analysis.plotting import class_neighbors, figures, map_figure, projections, style
from ray_embed.analysis.plotting.components import Components, load_or_compute_components
from ray_embed.analysis.plotting.fonts import Lettering, choose_lettering, letters
from ray_embed.analysis.plotting.palette import (
    Classes,
    apply_lettering,
    group_classes,
    is_scale,
    shorten,
    sort_by_name,
)
from ray_embed.core import console
from ray_embed.core.arrays import Array, as_objects
from ray_embed.projector import bookmarks
from ray_embed.runs import sampling
from ray_embed.runs.label_frequencies import rank_labels
from ray_embed.runs.reader import RunReader, open_run
from ray_embed.runs.sampling import Subset
from ray_embed.sources.label_lists import is_list
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.lock import lock_folder

Say = Callable[[str], None]

# More points would not show anything new, and t-SNE would take minutes.
DRAWN = 5_000
_CLASSES = 15
_SHEET_ROWS, _SHEET_NEIGHBORS = 10, 8
_NONE = "(none)"
_TABLE = "labels with letters that no font on this machine has:"


def plot(run: str, layer: str | None, say: Say, labels: LabelKind | None = None) -> None:
    """Draw a run's features into ``plots/``, and save maps for the projector's page.

    Args:
        run: the run folder.
        layer: the layer to draw, if there are several.
        say: prints a line for the user.
        labels: whether to treat numeric labels as "classes" or "values". If None, they are classes
            if they are integers, or floats that are all whole with at most 50 distinct values.

    Raises:
        InputError: the run or layer does not exist, shards are missing, features are not finite,
            `labels` is "values" and the labels are not numbers, or matplotlib is missing.
        RunError: a part is damaged, or the storage fails.
    """
    style.check_installed()
    reader = open_run(run)
    output, folder = reader.output_of(layer), reader.folder
    column = output.column
    reader.require_finished()
    with lock_folder(folder):
        records = sampling.draw_sample(
            folder, column, sampling.limit_by_memory(DRAWN, output.dimension)
        )
        if not len(records):
            say("all records were rejected, so there is nothing to draw")
            return
        sampling.check_finite(records, folder.display_path())
        choice = choose_label_kind([folder], labels)
        records = convert_labels(records, choice.kind)
        if choice.note:
            say(choice.note)
        if is_list(records.label_type):
            records = _choose_labels(records, rank_labels(folder))
            say(
                "the labels are lists: each record is drawn as of one class, the label in its list "
                "that most records of the run have"
            )
        if not projections.has_umap():
            say("no UMAP, which needs umap-learn: pip install 'ray_embed[plots]'")
        name = posixpath.basename(folder.path)
        lettering = _choose_lettering(records, name)
        drawing = _FigureWriter(folder, column, name, records, lettering, say)
        with style.apply_style(lettering):
            drawing.draw(load_or_compute_components(folder, column, records.features))
        _save_views(reader, column, records, say)


def _choose_labels(records: Subset, ranked: Sequence[str]) -> Subset:
    """Return the records with one label each: the first of `ranked` that is in their list."""
    rank = {label: position for position, label in enumerate(ranked)}
    labels = [labels and min(labels, key=rank.__getitem__) for labels in records.labels]
    return replace(records, labels=as_objects(labels), label_type=pa.string())


def _choose_lettering(records: Subset, name: str) -> Lettering:
    """Choose fonts for the classes, splits and file names of records, and for the run's name."""
    names: list[str] = []
    if not is_scale(records.label_type):
        classes = group_classes(records.labels).names
        names += (classes[code] for code in sort_by_name(np.arange(len(classes)), classes))
    names += dict.fromkeys(records.splits)
    return choose_lettering(names, (name, *map(_get_file_name, records.keys)))


def _get_file_name(key: object) -> str:
    return posixpath.basename(str(key))


def _save_views(run: RunReader, column: str, records: Subset, say: Say) -> None:
    """Map the points that the page shows, if they are few enough, and write the views."""
    folder, limit = run.folder, int(run.config["projector_limit"])
    shown = min(records.total, limit)
    most = sampling.limit_by_memory(bookmarks.MAX_TSNE_POINTS, records.features.shape[1])
    # The coordinates that `reduce` writes need less memory than the features.
    is_reduced = all(
        folder.exists(part_files.part_name(layout.PCA, number))
        for number in part_files.list_part_numbers(folder)
    )
    if shown > (bookmarks.MAX_TSNE_POINTS if is_reduced else most):
        say(f"no t-SNE and UMAP for the page: it shows {shown:,} points, more than {most:,}")
        return
    console.say(f"mapping the {shown:,} points of the page, in three dimensions")
    if shown > most:
        index, components = sampling.draw_components(folder, column, limit)
    else:
        if shown != len(records):
            records = sampling.draw_sample(folder, column, limit)
        components = load_or_compute_components(folder, column, records.features).coordinates
        index = records.index
    maps = projections.compute_projections(components, 3)
    maps["pca"] = components[:, : bookmarks.MAX_PCA_AXES]
    bookmarks.save_maps(run, column, index, maps)
    if not folder.exists(f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}"):
        return
    views = bookmarks.make_bookmarks(run, lambda name: folder.read(f"{layout.PROJECTOR}/{name}"))
    for name, content in views.files.items():
        folder.write(f"{layout.PROJECTOR}/{name}", content)
    if views.names:
        say(f"saved views for the page: {', '.join(views.names)} (`ray-embed view` shows them)")


class _FigureWriter:
    """Draws and saves the figures of some records.

    Args:
        folder: the run folder.
        column: the column of the features.
        name: the name of the run.
        records: the records.
        lettering: how their names are drawn.
        say: prints a line for the user.
    """

    def __init__(
        self,
        folder: Folder,
        column: str,
        name: str,
        records: Subset,
        lettering: Lettering,
        say: Say,
    ) -> None:
        self._folder, self._records, self._say = folder, records, say
        self._lettering = lettering
        self._suffix = column.removeprefix("feature")
        total, count = records.total, len(records)
        sample = f"{count:,} records" if count == total else f"{count:,} of {total:,} records"
        self._name = shorten(lettering.text(name + self._suffix), 40)
        self._about = f"{self._name} · {sample}"
        splits = list(dict.fromkeys(records.splits))
        names = " and ".join(shorten(lettering.text(split)) for split in splits)
        among = f" among {names}" if len(splits) in (2, 3) else ""
        self._among = f"{among} · {self._name}"

    def draw(self, components: Components) -> None:
        """Draw all figures that the records allow."""
        records, lettering = self._records, self._lettering
        if advice := lettering.advice():
            self._say(advice)
        features = narrow_features(records.features)
        maps = self._make_maps(features, components)
        classes = None
        if not is_scale(records.label_type):
            classes = apply_lettering(group_classes(records.labels), lettering)
        self._draw_maps(maps, classes)
        self._draw_variance(components)
        if classes is None or len(classes.names) < 2:
            self._say("no confusion and no contact sheet, which need two classes")
            return
        self._draw_neighbors(classes, features)

    def _make_maps(self, features: Array, components: Components) -> list[projections.Map]:
        """Compute the maps, and print their quality."""
        console.say(f"mapping {len(self._records):,} records, which may take a minute or two")
        maps = [
            projections.evaluate_map(name, features, points)
            for name, points in projections.compute_projections(components.coordinates, 2).items()
        ]
        for drawn in maps:
            quality = map_figure.describe_quality(drawn).replace("\n", " ")
            self._say(f"{map_figure.NAMES[drawn.name]:<8}{quality}")
        return maps

    def _draw_maps(self, maps: list[projections.Map], classes: Classes | None) -> None:
        """Draw the maps by label, and also by split if there are several splits."""
        records = self._records
        if classes is None:
            values = np.array([np.nan if v is None else v for v in records.labels], float)
            figure = map_figure.draw_by_scale(maps, values, "label")
            names: tuple[str, ...] = ()
        else:
            figure = map_figure.draw_by_class(maps, classes, _NONE)
            names = classes.names[: classes.colored]
        self._save("maps_by_label", figure, f"Maps by label · {self._about}", names)
        splits = apply_lettering(group_classes(records.splits), self._lettering)
        if len(splits.names) > 1:
            # Splits of similar data overlap, so names at their medians would not help.
            figure = map_figure.draw_by_class(maps, splits, _NONE, named=False)
            title = f"Maps by split · {self._about}"
            self._save("maps_by_split", figure, title, splits.names[: splits.colored])

    def _draw_variance(self, components: Components) -> None:
        known = "" if components.records is None else f" of {components.records:,} records"
        if components.first_of is not None:
            count, total = len(components.ratios), components.first_of
            known = f", the first {count} of {total:,} components"
        title = f"Explained variance{known} · {self._name}"
        self._save("explained_variance", figures.draw_variance(components.ratios), title)

    def _draw_neighbors(self, classes: Classes, features: Array) -> None:
        """Draw the confusion and the contact sheet of the records that have a class."""
        labeled = np.flatnonzero(classes.codes >= 0)
        codes = classes.codes[labeled]
        near = class_neighbors.find_class_neighbors(features[labeled], codes)
        shares = class_neighbors.compute_confusion(near, codes, len(classes.names))
        most = class_neighbors.choose_most_confused(shares, _CLASSES)
        chosen = sort_by_name(most, classes.names)
        few = "" if len(chosen) == len(classes.names) else f", the {len(chosen)} most confused"
        title = f"Classes of the {near.rows.shape[1]} nearest neighbors{few}{self._among}"
        figure = figures.draw_confusion(shares, classes.drawn, chosen)
        self._save("confusion", figure, title, [classes.names[code] for code in chosen])
        misplaced = class_neighbors.rank_misplaced(near, codes)
        self._draw_sheet(labeled, near, misplaced, classes)

    def _draw_sheet(
        self,
        labeled: Array,
        near: class_neighbors.ClassNeighbors,
        misplaced: class_neighbors.Misplaced,
        classes: Classes,
    ) -> None:
        rows = misplaced.rows[:_SHEET_ROWS]
        if not len(rows):
            self._say("no contact sheet: no record has a neighbor of another class")
            return
        neighbors = near.rows[rows, :_SHEET_NEIGHBORS]
        drawn = np.column_stack([rows, neighbors])
        index = self._records.index[labeled[drawn.reshape(-1)]]
        thumbnails = sampling.read_thumbnails(self._folder, index)
        if thumbnails is None:
            self._say("no contact sheet, as thumbnails are missing")
            return
        pictures = iter(thumbnails)
        codes = classes.codes[labeled]
        records, strips = [], []
        for position, row in enumerate(rows):
            share = f"{100 * misplaced.shares[position]:.0f} % of its {near.rows.shape[1]}"
            inside = classes.drawn[misplaced.inside[position]]
            lines = (self._name_record(labeled[row]), f"{share} neighbors", f"are {inside}")
            records.append((next(pictures), classes.drawn[codes[row]], lines))
            strips.append(
                [
                    (next(pictures), classes.drawn[codes[other]], bool(codes[other] == codes[row]))
                    for other in neighbors[position]
                ]
            )
        title = f"Farthest inside another class, and the nearest neighbors{self._among}"
        used = {*codes[drawn.reshape(-1)], *misplaced.inside[:_SHEET_ROWS]}
        names = [classes.names[code] for code in used]
        self._save("misplaced", figures.draw_contact_sheet(records, strips), title, names)

    def _name_record(self, record: int) -> str:
        """Return a record's split and file name, or its index if no font has the name's letters."""
        split, name = self._records.splits[record], _get_file_name(self._records.keys[record])
        if letters(name) & self._lettering.missing:
            name = f"record {self._records.index[record]}"
        return f"{self._lettering.text(split)} {name}"

    def _save(self, name: str, figure: Any, title: str, names: Iterable[str] = ()) -> None:
        """Write a figure with its title and a table of the names that it draws as numbers."""
        style.add_title(figure, title)
        style.add_table(figure, _TABLE, self._lettering.table(names))
        for file in style.save_figure(self._folder, f"{name}{self._suffix}", figure):
            self._say(self._folder.display_path(file))
