# SPDX-License-Identifier: Apache-2.0
"""sprite.png: a square grid, row by row, in which cell k is the picture of point k."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from ray_embed.core.threads import open_ordered_map
from ray_embed.projector.sprite import choose_cell_size, write_sprite

Image.MAX_IMAGE_PIXELS = None


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def plain(color, height=1, width=1):
    return png(np.full((height, width, 3), color))


def sprite_of(path, pngs):
    """Write a sprite; give its pixels and how many cells the page takes a row to have."""
    write_sprite(path, len(pngs), iter(pngs))
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    side = choose_cell_size(len(pngs))
    assert pixels.shape[0] == pixels.shape[1]
    return pixels, side, pixels.shape[1] // side


def cell_of(sprite, at):
    pixels, side, row = sprite
    top, left = at // row * side, at % row * side
    return pixels[top : top + side, left : left + side]


@pytest.mark.parametrize(
    "points", [1, 2, 4, 5, 10, 1797, 16384, 16385, 20_000, 60_000, 100_000, 8192**2]
)
def test_grid_fits_within_the_largest_picture_the_page_takes(points):
    side = choose_cell_size(points)
    row = math.ceil(math.sqrt(points))
    assert 1 <= side <= 64
    assert row * side <= 8192
    # No smaller than need be.
    assert side == 64 or (side + 1) * row > 8192


def test_more_points_than_pixels_have_no_sprite():
    assert choose_cell_size(8192**2 + 1) == 0


@pytest.mark.parametrize("points", [1, 2, 3, 4, 5, 9, 10, 17])
def test_cell_k_is_picture_k_and_the_rest_is_blank(tmp_path, points):
    colors = [(7 * at, 255 - 9 * at, 100 + at) for at in range(points)]
    sprite = sprite_of(tmp_path / "s.png", [plain(color, 8, 8) for color in colors])
    _, side, row = sprite
    assert (side, row) == (64, math.ceil(math.sqrt(points)))
    for at, color in enumerate(colors):
        assert (cell_of(sprite, at) == color).all()
    for at in range(points, row * row):
        assert (cell_of(sprite, at) == 255).all()


def test_twenty_thousand_points_are_in_order_and_made_smaller(tmp_path):
    count = 20_000
    colors = np.stack([np.arange(count) % 251, np.arange(count) // 251, np.arange(count) % 7], 1)
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    sprite = sprite_of(tmp_path / "s.png", [*(plain(color) for color in colors[:-1]), png(half)])
    pixels, side, row = sprite
    assert pixels.shape[0] <= 8192
    assert (side, row) == (57, 142)
    middle = pixels[side // 2 :: side, side // 2 :: side].reshape(-1, 3)
    assert (middle[: count - 1] == colors[:-1]).all()
    assert (middle[count:] == 255).all()
    last = cell_of(sprite, count - 1)
    assert (last[:, : side // 2 - 1] == 0).all()
    assert (last[:, side // 2 + 2 :] == 255).all()


@pytest.mark.parametrize("shape", [(64, 64), (64, 16), (16, 64), (64, 1), (1, 64), (7, 3), (3, 7)])
@pytest.mark.parametrize("at", [0, 4, 9])
def test_pictures_keep_their_proportions_and_stay_in_their_cell(tmp_path, shape, at):
    pngs = [plain((0, 0, 255), 4, 4)] * 10
    pngs[at] = plain((255, 0, 0), *shape)
    sprite = sprite_of(tmp_path / "s.png", pngs)
    cell = cell_of(sprite, at)
    red = (cell == (255, 0, 0)).all(2)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    factor = sprite[1] / max(shape)
    assert abs(len(rows) - shape[0] * factor) <= 1
    assert abs(len(columns) - shape[1] * factor) <= 1
    assert red[np.ix_(rows, columns)].all()
    assert (cell[~red] == 255).all()
    for other in {*range(10)} - {at}:
        assert (cell_of(sprite, other) == (0, 0, 255)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_thumbnails_of_any_kind_of_png(tmp_path, mode):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5), (0, 0, 0)).convert(mode).save(buffer, "png")
    sprite = sprite_of(tmp_path / "s.png", [buffer.getvalue(), plain((9, 9, 9))])
    assert (cell_of(sprite, 0) == 0).all()
    assert (cell_of(sprite, 1) == 9).all()


def test_same_pictures_give_the_same_bytes(tmp_path):
    pngs = [plain((at, at, at)) for at in range(20)]
    write_sprite(tmp_path / "a.png", 20, iter(pngs))
    write_sprite(tmp_path / "b.png", 20, iter(pngs))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path, threads):
    pngs = [plain((at, 2 * at, 9), 1 + at % 7, 1 + at % 5) for at in range(90)]
    write_sprite(tmp_path / "a.png", 100, iter(pngs))
    with open_ordered_map(threads) as mapped:
        write_sprite(tmp_path / "b.png", 100, iter(pngs), mapped)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_tensorflow_reads_the_sprite_too(tmp_path):
    import tensorflow as tf

    random = np.random.default_rng(0)
    pixels, *_ = sprite_of(
        tmp_path / "s.png", [png(random.integers(0, 256, (64, 64, 3))) for _ in range(7)]
    )
    found = tf.io.decode_png((tmp_path / "s.png").read_bytes()).numpy()
    assert (found == pixels).all()
