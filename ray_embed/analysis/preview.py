# SPDX-License-Identifier: Apache-2.0
"""``ray-embed preview``: a contact sheet of a few records as the encoder gets them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.arrays import Array
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError
from ray_embed.extraction import inputs, pixels
from ray_embed.extraction.prepare import check_model, encoder_spec
from ray_embed.images import decode
from ray_embed.planning import SplitPlan
from ray_embed.sources import files, npz
from ray_embed.sources.open import Source, Streamed, open_sources

Say = Callable[[str], None]

RECORDS, _COLUMNS = 9, 3
# Records to choose from: listing all of a large source would take long.
_LISTED = 10_000
_KEY_LENGTH = 28


@dataclass(frozen=True)
class _Chosen:
    """A few records of one split: their keys, and their images or the contents of their files."""

    split: SplitPlan
    keys: list[str]
    images: list[Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Sample:
    """The same, prepared.

    `stored` are the images as they lie in the source, each (h, w, c); `given` are those that the
    encoder gets, (n, H, W, C) float32; a file that cannot be decoded is in neither.
    """

    split: SplitPlan
    keys: list[str]
    stored: list[Array]
    given: Array
    notes: tuple[str, ...]


def preview(config: RunConfig, sheet: str, say: Say) -> None:
    """Show how a few records become the encoder's input; makes no run folder, starts no Ray.

    Args:
        config: the options of a run.
        sheet: the picture to write, a .png file.
        say: takes the lines for the user.

    Raises:
        InputError: an option, a source or the model does not fit, or matplotlib is missing.
    """
    from ray_embed.analysis.plotting import style
    from ray_embed.encoders.tensorflow_setup import start_tensorflow

    style.check_installed()
    if Path(sheet).suffix.lower() != ".png" or not Path(sheet).absolute().parent.is_dir():
        raise InputError(f"--sheet {sheet}: give a .png file in a folder that is there")
    check_model(config)
    sources = open_sources(config)
    start_tensorflow(None, str(Path.cwd()))
    from ray_embed.encoders.build import build

    chosen = _chosen(config, sources)
    shapes = [one.split.image_shape for one in chosen]
    spec = encoder_spec(config, next((shape for shape in shapes if shape), None), RECORDS)
    # Which engine is fastest does not matter for what it gets.
    encoder = build(replace(spec, engine="tensorflow"), 1)
    if encoder.takes_bytes:
        raise InputError(
            f"--model {encoder.spec.model_name}: it takes the bytes of image files and decodes "
            "them itself, so there is no input batch to show"
        )
    pixels.check(config, tuple(one.split for one in chosen), encoder)
    samples = [_sample(config, one, encoder) for one in chosen]
    lines = _lines(config, samples, encoder)
    for line in lines:
        say(line)
    if advice := _draw(samples, lines, sheet):
        say(advice)
    say(f"sheet     {sheet}")


def _chosen(config: RunConfig, sources: list[Source]) -> list[_Chosen]:
    each = -(-RECORDS // len(sources))
    return [
        _of_stream(config, ordinal, source, each)
        if isinstance(source, Streamed)
        else _of_listed(config, ordinal, source, each)
        for ordinal, source in enumerate(sources)
    ]


def _of_stream(config: RunConfig, ordinal: int, source: Streamed, count: int) -> _Chosen:
    from ray_embed.sources.dataset import StreamReader

    reader = StreamReader(source, min(count, config.limit or count))
    info = reader.describe()
    shard = reader.next_shard(count)
    split = _split(ordinal, source.split, "stream", source.name)
    split = replace(split, image_shape=info.image_shape, image_dtype=info.image_dtype)
    keys = shard.rows["key"].to_pylist() if shard else []
    return _Chosen(split, keys, shard.images if shard else [], info.notes)


def _of_listed(config: RunConfig, ordinal: int, source: Any, count: int) -> _Chosen:
    limit = min(_LISTED, config.limit or _LISTED)
    batches, listed = [], 0
    for batch in source.records(Counter()):
        batches.append(batch.slice(0, limit - listed))
        listed += batches[-1].num_rows
        if listed >= limit:
            break
    rows = pa.Table.from_batches(batches)
    # Spread over what was listed, which is often sorted by label.
    positions = np.unique(np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows), dtype=int))
    rows = rows.take(pa.array(positions))
    split = _split(ordinal, source.split, source.kind, source.root)
    split = replace(split, image_shape=source.image_shape, image_dtype=source.image_dtype)
    if source.kind == "array":
        read = [npz.read_images(source.location, int(at), 1)[0] for at in positions]
        return _Chosen(split, rows["key"].to_pylist(), read, source.notes)
    contents = [
        (key, files.read(file, (None, None)) if size is not None else "missing")
        for key, size, file in zip(
            rows["key"].to_pylist(),
            rows["size"].to_pylist(),
            inputs.find_files(source.location, rows),
            strict=True,
        )
    ]
    there = [(key, content) for key, content in contents if isinstance(content, bytes)]
    keys = [key for key, _ in there]
    return _Chosen(split, keys, [content for _, content in there], source.notes)


def _split(ordinal: int, name: str, kind: str, root: str) -> SplitPlan:
    return SplitPlan(ordinal, name, kind, root, "string", (), RECORDS, 1)


def _sample(config: RunConfig, chosen: _Chosen, encoder: Encoder) -> _Sample:
    import tensorflow as tf

    from ray_embed.encoders.features import load_preprocessing

    split, images = chosen.split, chosen.images
    spec = pixels.pixel_spec(config, split, encoder)
    nothing = np.zeros((0, *encoder.image_shape), np.float32)
    if not images:
        return _Sample(split, [], [], nothing, chosen.notes)
    if split.kind == "files":
        batches = decode.content_batches(images, spec, len(images), 1)
    else:
        inputs.check_shapes(images, split, 0, spec)
        batches = decode.array_batches(images, spec, len(images), 1)
    batch = next(iter(batches), None)
    if batch is None:
        return _Sample(split, [], [], nothing, chosen.notes)
    positions = batch.positions.tolist()
    stored = [
        tf.io.decode_image(images[at], expand_animations=False).numpy()
        if split.kind == "files"
        else images[at]
        for at in positions
    ]
    given = np.asarray(load_preprocessing(encoder.spec)(batch.images))
    return _Sample(split, [chosen.keys[at] for at in positions], stored, given, chosen.notes)


def _lines(config: RunConfig, samples: list[_Sample], encoder: Encoder) -> list[str]:
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
        lines += [f"{sample.split.split}: {note}" for note in sample.notes]
        if not len(sample.given):
            lines.append(f"{sample.split.split}: none of the first records can be decoded")
            continue
        low, mean, high = (float(f(sample.given)) for f in (np.min, np.mean, np.max))
        lines.append(
            f"{sample.split.split}: the input batch has minimum {low:.4g}, mean {mean:.4g}, "
            f"maximum {high:.4g}"
        )
        if pixels.has_floats(sample.split) and (
            warning := pixels.warn_of_floats(sample.split.split, low, high, encoder)
        ):
            lines.append(f"warning: {warning}")
    return lines


def _draw(samples: list[_Sample], lines: list[str], sheet: str) -> str | None:
    """Draw each record as it is stored and as the encoder gets it, below the lines.

    Returns:
        A line on letters that no font has, if there are any.
    """
    import textwrap

    from ray_embed.analysis.plotting import style
    from ray_embed.analysis.plotting.fonts import choose_lettering

    records = [
        (sample.split.split, key, stored, given)
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
        for at, (split, key, stored, given) in enumerate(records):
            row, column = divmod(at, _COLUMNS)
            name = lettering.text(key)
            name = name if len(name) <= _KEY_LENGTH else f"…{name[1 - _KEY_LENGTH :]}"
            size = "×".join(str(side) for side in stored.shape)
            _show(
                figure.add_subplot(grid[row, 2 * column]), _to_levels(stored),
                f"{split}: {name}\nstored: {size}",
            )  # fmt: skip
            low, mean, high = (float(f(given)) for f in (np.min, np.mean, np.max))
            _show(
                figure.add_subplot(grid[row, 2 * column + 1]), _to_levels(given),
                f"encoder gets\n{low:.3g} to {high:.3g}, mean {mean:.3g}",
            )  # fmt: skip
        figure.savefig(sheet, format="png", dpi=110)
    return lettering.advice()


def _show(axes: Any, image: Array, title: str) -> None:
    axes.set_title(title, fontsize=7, fontweight="normal", parse_math=False)
    axes.axis("off")
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image[..., :3])


def _to_levels(image: Array) -> Array:
    """Return pixels of any range as levels from 0 to 255 that can be shown."""
    shown = image if image.dtype == np.uint8 else decode.to_levels(image).numpy()
    return np.clip(np.round(shown), 0, 255).astype(np.uint8)
