# SPDX-License-Identifier: Apache-2.0
"""SavedModels that take the bytes of image files, and graphs with loops, as these have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.command import Command
from support.encoders import encode, noise, spec
from support.pictures import make_folder, picture

import ray_embed as package
from ray_embed.encoders.build import build
from ray_embed.encoders.graph import fold
from ray_embed.encoders.probe_images import encoded_noise
from ray_embed.errors import InputError
from ray_embed.images import decode
from ray_embed.images.pixel_spec import PixelSpec

KERNEL = noise(3, (3, 3, 5)) - 0.5
CONTENTS = tf.TensorSpec((None,), tf.string)
CONTENT = tf.TensorSpec((), tf.string)
PIXELS = tf.TensorSpec((16, 16, 3), tf.float32)


class Served(tf.Module):
    """An encoder as it is exported for TensorFlow Serving, and others that take strings."""

    def __init__(self):
        self.kernel = tf.Variable(KERNEL)

    def features(self, images):
        return {"features": tf.reduce_mean(tf.nn.conv2d(images, self.kernel, 1, "SAME"), (1, 2))}

    def decoded(self, content):
        image = tf.io.decode_jpeg(content, channels=3)
        tf.debugging.assert_greater(tf.shape(image)[0], 0, "no image")
        return tf.image.resize(tf.image.convert_image_dtype(image, tf.float32), (16, 16))

    @tf.function(input_signature=[CONTENTS])
    def batch(self, contents):
        return self.features(tf.map_fn(self.decoded, contents, fn_output_signature=PIXELS))

    @tf.function(input_signature=[CONTENT])
    def scalar(self, content):
        return self.features(self.decoded(content)[None])

    @tf.function(input_signature=[CONTENT])
    def scalar_without_batch(self, content):
        return {"features": self.features(self.decoded(content)[None])["features"][0]}

    @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3))])
    def images(self, images):
        return self.features(images)

    @tf.function(input_signature=[CONTENTS])
    def base64(self, contents):
        return self.batch(tf.io.decode_base64(contents))

    @tf.function(input_signature=[CONTENTS])
    def examples(self, contents):
        parsed = tf.io.parse_example(contents, {"image": tf.io.FixedLenFeature((), tf.string)})
        return self.batch(parsed["image"])

    @tf.function(input_signature=[CONTENTS])
    def texts(self, texts):
        return {"length": tf.cast(tf.strings.length(texts), tf.float32)[:, None]}


# It holds its variables only as long as it lives.
SERVED = Served()


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    module = SERVED

    def call(*names: str) -> Path:
        folder = tmp_path_factory.mktemp("served") / "m"
        signatures = {name: getattr(module, name) for name in names}
        tf.saved_model.save(module, str(folder), signatures=signatures)
        return folder

    return call


def assert_close(found: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["batch", "scalar", "scalar_without_batch"])
def test_signature_that_takes_the_bytes_of_files(save: Callable[..., Path], name: str) -> None:
    encoder = build(spec(save(name)))
    assert encoder.takes_bytes
    assert encoder.engine == "folded"
    assert encoder.warnings == ()
    assert "takes the bytes of image files" in encoder.notes[-1]
    contents = encoded_noise(4)
    assert_close(encode(encoder, contents)[0], SERVED.batch(list(contents))["features"])


def test_signature_that_takes_images_is_rather_taken(save: Callable[..., Path]) -> None:
    folder = save("batch", "images", "texts")
    assert not build(spec(folder)).takes_bytes
    assert build(spec(folder, signature="batch")).takes_bytes


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("base64", "it fails on a batch of images"),
        ("examples", "it fails on a batch of images"),
        ("texts", "decodes no image"),
    ],
)
def test_strings_that_are_no_image_files(save: Callable[..., Path], name: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        build(spec(save(name)))
    assert part in str(caught.value)
    assert "model.export" in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"image_size": (8, 8)}, {"preprocess": "a:b"}, {"engine": "openvino"}]
)
def test_options_for_pixels_are_refused(save: Callable[..., Path], options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="takes the bytes of image files"):
        build(spec(save("batch"), **options))


def test_batches_hold_the_files_and_thumbnails(tmp_path: Path) -> None:
    paths = sorted(make_folder(tmp_path, {"a": 3}).rglob("*.png"))
    paths[1].write_bytes(b"not an image")
    pixels = PixelSpec(shape=(128, 128, 3), scale="unit", takes_bytes=True)
    (batch,) = decode.file_batches([bytes(path) for path in paths], pixels, 4, 1)
    assert batch.positions.tolist() == [0, 2]
    assert list(batch.images) == [paths[0].read_bytes(), paths[2].read_bytes()]
    assert len(list(batch.encode_thumbnails())) == 2
    found = decode.diagnose(paths[0].read_bytes(), pixels)
    assert isinstance(found, decode.Batch)
    assert list(found.images) == [paths[0].read_bytes()]
    assert decode.diagnose(b"not an image", pixels) == "not an image"


def test_graph_with_loops_is_hashed_by_what_the_loops_do() -> None:
    """Loops in a frozen graph are cycles."""

    def looping(factor: float, steps: int = 3) -> tuple[str, str]:
        def encoder(images: Any) -> list[Any]:
            def body(step: Any, value: Any) -> tuple[Any, Any]:
                inner = tf.map_fn(lambda x: x * factor, value)
                return step + 1, tf.reduce_max(inner) + value * np.full(3, factor, np.float32)

            loop = tf.while_loop(lambda step, _: step < steps, body, (0, images))
            return [tf.reduce_mean(loop[1], (1, 2))]

        folded = fold(encoder, (2, 4, 4, 3), "float32")
        return folded.architecture, folded.content

    assert looping(2.0) == looping(2.0)
    assert looping(2.0)[1] != looping(3.0)[1]
    assert looping(2.0)[0] != looping(2.0, 4)[0]


@pytest.mark.slow
def test_run(ray_embed: Command, save: Callable[..., Path]) -> None:
    folder = make_folder(Path("valid"), {"a": 3, "b": 2})
    picture(7).save(folder / "a" / "x.jpg")
    # Of Pillow's BMP, `decode_jpeg` can read nothing, and `decode_image` all.
    picture(8).save(folder / "a" / "y.bmp")
    (folder / "b" / "z.png").write_bytes(b"not an image")
    model = save("batch")
    arguments = ("extract", "--source", folder, "--model", model, "--batch-size", 4)
    result = ray_embed(*arguments, "--out", "r")
    assert result.code == 0, result.err
    run = package.load("r")
    assert run.rejects_by_reason == {"unreadable by the encoder": 1, "not an image": 1}
    table = run.to_table()
    keys = table["key"].to_pylist()
    assert keys == ["a/0000.png", "a/0001.png", "a/0002.png", "a/x.jpg", "b/0000.png", "b/0001.png"]
    contents = [(folder / key).read_bytes() for key in keys]
    assert_close(run.to_numpy()[0], SERVED.batch(contents)["features"])
    result = ray_embed(*arguments, "--out", "s", "--scale", "symmetric")
    assert result.code == 2
    assert "--scale symmetric" in result.err
