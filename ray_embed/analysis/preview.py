# SPDX-License-Identifier: Apache-2.0
"""``ray-embed preview``: a contact sheet of a few records as the encoder receives them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import UNCOMPILED
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError
from ray_embed.extraction import pixels
from ray_embed.extraction.prepare import check_model, find_image_shape, make_encoder_spec
from ray_embed.images.preparing import scale_to_255
from ray_embed.planning import SplitPlan
from ray_embed.sources.base import Source
from ray_embed.sources.open import open_sources
from ray_embed.sources.samples import Sample, draw_sample

Say = Callable[[str], None]

RECORDS, _COLUMNS = 9, 3
_KEY_LENGTH = 28


@dataclass(frozen=True)
class _Chosen:
    """A few records of one source, and a plan for a split that consists of them."""

    split: SplitPlan
    source: Source
    sample: Sample


@dataclass(frozen=True)
class _Prepared:
    """A few records of one source, with their images.

    `stored` holds the images as they are in the source, each (h, w, c). `given` holds the images
    that the encoder receives, (n, H, W, C) float32. A file that cannot be decoded is in neither.
    """

    split: SplitPlan
    keys: list[str]
    stored: list[Array]
    given: Array
    notes: tuple[str, ...]


def preview(config: RunConfig, sheet: str, say: Say) -> None:
    """Show how a few records become the encoder's input, without a run folder and without Ray.

    Args:
        config: the options of a run.
        sheet: the .png file to write the contact sheet to.
        say: prints a line for the user.

    Raises:
        InputError: an option, a source or the model is invalid, or matplotlib is missing.
    """
    from ray_embed.analysis.plotting import style
    from ray_embed.encoders.tensorflow_setup import start_tensorflow

    style.check_installed()
    if Path(sheet).suffix.lower() != ".png" or not Path(sheet).absolute().parent.is_dir():
        raise InputError(f"--sheet {sheet}: give a .png file in a folder that exists")
    check_model(config)
    sources = open_sources(config)
    start_tensorflow(None, str(Path.cwd()))
    from ray_embed.encoders.build import build

    chosen = _draw_samples(config, sources)
    infos = {item.split.name: item.sample.info for item in chosen}
    spec = make_encoder_spec(config, find_image_shape((), infos), RECORDS)
    # The choice of engine does not affect the encoder's input, and this one needs no compilation.
    encoder = build(replace(spec, engine=UNCOMPILED), 1)
    if encoder.takes_bytes:
        raise InputError(
            f"--model {encoder.spec.model_name}: it takes the bytes of image files and decodes "
            "them itself, so there is no input batch to show"
        )
    config = pixels.adopt_options(config, encoder)
    pixels.check(config, tuple(item.split for item in chosen), encoder)
    samples = [_prepare_sample(config, item, encoder) for item in chosen]
    lines = _describe_samples(config, samples, encoder)
    for line in lines:
        say(line)
    if advice := _draw_sheet(samples, lines, sheet):
        say(advice)
    say(f"sheet     {sheet}")


def _draw_samples(config: RunConfig, sources: list[Source]) -> list[_Chosen]:
    count = -(-RECORDS // len(sources))
    chosen = []
    for ordinal, source in enumerate(sources):
        sample = draw_sample(source, count, config.limit)
        split = planning.plan_split(ordinal, source, sample.info, RECORDS)
        chosen.append(_Chosen(split, source, sample))
    return chosen


def _prepare_sample(config: RunConfig, chosen: _Chosen, encoder: Encoder) -> _Prepared:
    from ray_embed.encoders.features import load_preprocessing

    split, sample = chosen.split, chosen.sample
    images = chosen.source.reader().open(
        sample.records, pixels.make_pixel_spec(config, split, encoder)
    )
    nothing = np.zeros((0, *encoder.image_shape), np.float32)
    batch = next(images.batches(max(1, len(images)), 1), None)
    if batch is None:
        return _Prepared(split, [], [], nothing, sample.info.messages)
    numbers = batch.positions.tolist()
    keys = sample.records.rows["key"].to_pylist()
    inputs = np.asarray(load_preprocessing(encoder.spec)(batch.images))
    return _Prepared(
        split,
        [keys[number] for number in numbers],
        [images.load(number) for number in numbers],
        inputs,
        sample.info.messages,
    )


def _describe_samples(config: RunConfig, samples: list[_Prepared], encoder: Encoder) -> list[str]:
    """Return what was decided, and what the encoder's input looks like in numbers."""
    splits = tuple(sample.split for sample in samples)
    explained = pixels.explain(config, splits, encoder)
    height, width, channels = encoder.image_shape
    lines = [
        f"encoder   {encoder.spec.model_name}: {height}×{width}×{channels} "
        f"{encoder.rescaling.dtype}, {encoder.rescaling.describe()}",
        *encoder.notes,
        *explained.notes,
        *(f"warning: {text}" for text in (*encoder.warnings, *explained.warnings)),
    ]
    for sample in samples:
        lines += [f"{sample.split.name}: {note}" for note in sample.notes]
        if not len(sample.given):
            lines.append(f"{sample.split.name}: none of the first records can be decoded")
            continue
        low, mean, high = (float(f(sample.given)) for f in (np.min, np.mean, np.max))
        lines.append(
            f"{sample.split.name}: the input batch has minimum {low:.4g}, mean {mean:.4g}, "
            f"maximum {high:.4g}"
        )
        if pixels.has_floats(sample.split) and (
            warning := pixels.find_float_warning(sample.split.name, low, high, encoder)
        ):
            lines.append(f"warning: {warning}")
    return lines


def _draw_sheet(samples: list[_Prepared], lines: list[str], sheet: str) -> str | None:
    """Draw each record as stored and as the encoder receives it, below the lines of text.

    Returns:
        A line about letters that no font has, or None if there are no such letters.
    """
    import textwrap

    from ray_embed.analysis.plotting import style
    from ray_embed.analysis.plotting.fonts import choose_lettering

    records = [
        (sample.split.name, key, stored, given)
        for sample in samples
        for key, stored, given in zip(sample.keys, sample.stored, sample.given, strict=True)
    ][:RECORDS]
    rows = max(1, -(-len(records) // _COLUMNS))
    lettering = choose_lettering((), (*lines, *(key for _, key, _, _ in records)))
    text = [part for line in lines for part in textwrap.wrap(lettering.text(line), 170)]
    header = 0.3 + 0.17 * len(text)
    with style.apply_style(lettering):
        figure = style.new_figure(12, header + 2.5 * rows, None)
        bottom = 2.5 * rows / (header + 2.5 * rows)
        figure.text(
            0.02, 1 - 0.15 / (header + 2.5 * rows), "\n".join(text), va="top", fontsize=8,
            parse_math=False,
        )  # fmt: skip
        grid = figure.add_gridspec(
            rows, 2 * _COLUMNS, top=bottom - 0.03, bottom=0.06 / rows, left=0.02, right=0.98,
            wspace=0.06, hspace=0.35,
        )  # fmt: skip
        for number, (split, key, stored, given) in enumerate(records):
            row, column = divmod(number, _COLUMNS)
            name = lettering.text(key)
            name = name if len(name) <= _KEY_LENGTH else f"…{name[1 - _KEY_LENGTH :]}"
            size = "×".join(str(side) for side in stored.shape)
            _draw_image(
                figure.add_subplot(grid[row, 2 * column]), _to_levels(stored),
                f"{split}: {name}\nstored: {size}",
            )  # fmt: skip
            low, mean, high = (float(f(given)) for f in (np.min, np.mean, np.max))
            _draw_image(
                figure.add_subplot(grid[row, 2 * column + 1]), _to_levels(given),
                f"encoder gets\n{low:.3g} to {high:.3g}, mean {mean:.3g}",
            )  # fmt: skip
        figure.savefig(sheet, format="png", dpi=110)
    return lettering.advice()


def _draw_image(axes: Any, image: Array, title: str) -> None:
    axes.set_title(title, fontsize=7, fontweight="normal", parse_math=False)
    axes.axis("off")
    if image.shape[-1] < 3:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image[..., :3])


def _to_levels(image: Array) -> Array:
    """Return pixels of any range as levels from 0 to 255 that can be shown."""
    shown = image if image.dtype == np.uint8 else scale_to_255(image).numpy()
    return np.clip(np.round(shown), 0, 255).astype(np.uint8)
