# SPDX-License-Identifier: Apache-2.0
"""``ray-embed plot``: draws what a run's features look like, and keeps maps for the page."""

import posixpath
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_labels, with_labels
from ray_embed.analysis.evaluation.spectrum import narrowed
from ray_embed.analysis.plotting import class_neighbors, figures, map_figure, style
from ray_embed.analysis.plotting import projections as projections_module
from ray_embed.analysis.plotting.components import Spectrum, spectrum
from ray_embed.analysis.plotting.fonts import Lettering, choose_lettering, letters
from ray_embed.analysis.plotting.palette import (
    Classes,
    by_name,
    classes_of,
    is_scale,
    lettered,
    short,
)
from ray_embed.core import console
from ray_embed.core.arrays import Array
from ray_embed.projector import bookmarks
from ray_embed.runs import sampling
from ray_embed.runs.reader import open_run
from ray_embed.runs.sampling import Subset
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.lock import lock_folder

Say = Callable[[str], None]

# More dots than these show no more, and t-SNE would take minutes.
DRAWN = 5_000
_CLASSES = 15
_SHEET, _BESIDE = 10, 8
_NONE = "(none)"
_TABLE = "labels with letters that no font on this machine has:"


def plot(run: str, layer: str | None, say: Say, labels: LabelKind | None = None) -> None:
    """Draw a run's features into ``plots/``, and keep maps for the projector's page.

    Args:
        run: the run folder.
        layer: whose features, where there are several.
        say: takes the lines for the user.
        labels: whether labels that are numbers are "classes" or "values"; None for classes where
            they are whole numbers, or floats that are all whole and of at most 50 values.

    Raises:
        InputError: no such run or layer, shards are missing, features are not finite, labels that
            are no numbers are to be values, or there is no matplotlib.
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
            say("every record was rejected, so there is nothing to draw")
            return
        sampling.check_finite(records, folder.display_path())
        choice = choose_labels([folder], labels)
        records = with_labels(records, choice.kind)
        if choice.note:
            say(choice.note)
        if not projections_module.has_umap():
            say("no UMAP, which needs umap-learn: pip install 'ray_embed[plots]'")
        name = posixpath.basename(folder.path)
        lettering = _lettering_of(records, name)
        drawing = _Drawing(folder, column, name, records, lettering, say)
        with style.styled(lettering):
            drawing.all(spectrum(folder, column, records.features))
        limit = int(reader.config["projector_limit"])
        _keep_views(folder, column, records, limit, say)


def _lettering_of(records: Subset, name: str) -> Lettering:
    """Choose fonts for the names of some records' classes, and of their files and run."""
    names: list[str] = []
    if not is_scale(records.label_type):
        classes = classes_of(records.labels)
        names += (
            classes.names[code] for code in by_name(np.arange(len(classes.names)), classes.names)
        )
    names += dict.fromkeys(records.splits)
    return choose_lettering(names, (name, *map(_file_name, records.keys)))


def _file_name(key: object) -> str:
    return posixpath.basename(str(key))


def _keep_views(folder: Folder, column: str, records: Subset, limit: int, say: Say) -> None:
    """Map the points that the page shows, where they are few enough, and write the views."""
    shown = min(records.total, limit)
    most = sampling.limit_by_memory(bookmarks.MAPPED, records.features.shape[1])
    # The coordinates that `reduce` has written are few numbers, where features are many.
    is_reduced = all(
        folder.exists(part_files.part_name(layout.PCA, number))
        for number in part_files.list_part_numbers(folder)
    )
    if shown > (bookmarks.MAPPED if is_reduced else most):
        say(f"no t-SNE and UMAP for the page: it shows {shown:,} points, not {most:,}")
        return
    console.say(f"mapping the {shown:,} points of the page, in three dimensions")
    if shown > most:
        index, components = sampling.draw_components(folder, column, limit)
    else:
        if shown != len(records):
            records = sampling.draw_sample(folder, column, limit)
        index, components = records.index, spectrum(folder, column, records.features).coordinates
    found = projections_module.projections(components, 3)
    found["pca"] = components[:, : bookmarks.COMPONENTS]
    bookmarks.keep(folder, column, index, found)
    if not folder.exists(f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}"):
        return
    saved = bookmarks.saved(folder, lambda name: folder.read(f"{layout.PROJECTOR}/{name}"))
    for name, content in saved.files.items():
        folder.write(f"{layout.PROJECTOR}/{name}", content)
    if saved.names:
        say(f"saved views for the page: {', '.join(saved.names)} (`ray-embed view` shows them)")


class _Drawing:
    """Draws and saves the pictures of some records.

    Args:
        folder: the run folder.
        column: the features.
        name: of the run.
        records: the records.
        lettering: how their names are drawn.
        say: takes the lines for the user.
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
        of = len(records)
        some = f"{of:,} records" if of == records.total else f"{of:,} of {records.total:,} records"
        self._name = short(lettering.text(name + self._suffix), 40)
        self._about = f"{self._name} · {some}"
        splits = list(dict.fromkeys(records.splits))
        named = " and ".join(short(lettering.text(split)) for split in splits)
        among = f" among {named}" if len(splits) in (2, 3) else ""
        self._among = f"{among} · {self._name}"

    def all(self, found: Spectrum) -> None:
        """Draw all that there is something to draw for."""
        records, lettering = self._records, self._lettering
        if advice := lettering.advice():
            self._say(advice)
        console.say(f"mapping {len(records):,} records, which may take a minute or two")
        features = narrowed(records.features)
        drawn = [
            projections_module.judged(name, features, points)
            for name, points in projections_module.projections(found.coordinates, 2).items()
        ]
        for each in drawn:
            lost = map_figure.lost_in(each).replace("\n", " ")
            self._say(f"{map_figure.NAMES[each.name]:<8}{lost}")
        if is_scale(records.label_type):
            values = np.array([np.nan if v is None else v for v in records.labels], float)
            figure = map_figure.by_scale(drawn, values, "label")
            names: tuple[str, ...] = ()
        else:
            classes = lettered(classes_of(records.labels), lettering)
            figure = map_figure.by_class(drawn, classes, _NONE)
            names = classes.names[: classes.colored]
        self._save("maps_by_label", figure, f"Maps by label · {self._about}", names)
        splits = lettered(classes_of(records.splits), lettering)
        if len(splits.names) > 1:
            # Splits lie one upon the other, if all is well.
            figure = map_figure.by_class(drawn, splits, _NONE, named=False)
            title = f"Maps by split · {self._about}"
            self._save("maps_by_split", figure, title, splits.names[: splits.colored])
        some = "" if found.records is None else f" of {found.records:,} records"
        if found.first_of is not None:
            some = f", the first {len(found.ratios)} of {found.first_of:,} components"
        title = f"Explained variance{some} · {self._name}"
        self._save("explained_variance", figures.variance(found.ratios), title)
        if is_scale(records.label_type) or len(classes.names) < 2:
            self._say("no confusion and no contact sheet, which need two classes")
            return
        self._classes(classes, features)

    def _classes(self, classes: Classes, features: Array) -> None:
        """Draw what is confused, of the records that have a class."""
        labelled = np.flatnonzero(classes.codes >= 0)
        codes = classes.codes[labelled]
        near = class_neighbors.nearest(features[labelled], codes)
        shares = class_neighbors.confusion(near, codes, len(classes.names))
        chosen = by_name(class_neighbors.most_confused(shares, _CLASSES), classes.names)
        some = "" if len(chosen) == len(classes.names) else f", the {len(chosen)} most confused"
        title = f"Classes of the {near.rows.shape[1]} nearest neighbours{some}{self._among}"
        figure = figures.confusion(shares, classes.drawn, chosen)
        self._save("confusion", figure, title, [classes.names[code] for code in chosen])
        self._sheet(labelled, near, class_neighbors.misplaced(near, codes), classes)

    def _sheet(
        self,
        labelled: Array,
        near: class_neighbors.Neighbours,
        found: class_neighbors.Misplaced,
        classes: Classes,
    ) -> None:
        rows = found.rows[:_SHEET]
        if not len(rows):
            self._say("no contact sheet: no record has a neighbour of another class")
            return
        beside = near.rows[rows, :_BESIDE]
        shown = np.column_stack([rows, beside])
        index = self._records.index[labelled[shown.reshape(-1)]]
        thumbnails = sampling.read_thumbnails(self._folder, index)
        if thumbnails is None:
            self._say("no contact sheet, as thumbnails are missing")
            return
        pictures = iter(thumbnails)
        codes = classes.codes[labelled]
        records, strips = [], []
        for place, row in enumerate(rows):
            share = f"{100 * found.shares[place]:.0f} % of its {near.rows.shape[1]}"
            inside = classes.drawn[found.inside[place]]
            said = (self._called(labelled[row]), f"{share} neighbours", f"are {inside}")
            records.append((next(pictures), classes.drawn[codes[row]], said))
            strips.append(
                [
                    (next(pictures), classes.drawn[codes[other]], bool(codes[other] == codes[row]))
                    for other in beside[place]
                ]
            )
        title = f"Farthest inside another class, and the nearest neighbours{self._among}"
        used = {*codes[shown.reshape(-1)], *found.inside[:_SHEET]}
        names = [classes.names[code] for code in used]
        self._save("misplaced", figures.contact_sheet(records, strips), title, names)

    def _called(self, record: int) -> str:
        """Return a record's split and file name, or its index where no font has the letters."""
        split, name = self._records.splits[record], _file_name(self._records.keys[record])
        if letters(name) & self._lettering.missing:
            name = f"record {self._records.index[record]}"
        return f"{self._lettering.text(split)} {name}"

    def _save(self, name: str, figure: Any, title: str, names: Iterable[str] = ()) -> None:
        """Write a picture with its title, and below it a table of names that are numbers in it."""
        style.add_title(figure, title)
        style.add_table(figure, _TABLE, self._lettering.table(names))
        for written in style.save(self._folder, f"{name}{self._suffix}", figure):
            self._say(self._folder.display_path(written))
