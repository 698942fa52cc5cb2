# SPDX-License-Identifier: Apache-2.0
"""From image files and arrays to the batches an encoder takes, with a thumbnail of each.

Decoding and resizing are those of ``keras.utils.image_dataset_from_directory``, so that an encoder
sees the pixels it saw in training: `tf.io.decode_image` with 3 channels, then `tf.image.resize`,
bilinear without antialias. Records that cannot be decoded leave a gap; :func:`diagnose` says why.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.errors import InputError, RunError

Array = np.ndarray[Any, Any]

THUMBNAIL = 64
_HEADER = 32
_UNKNOWN, _JPEG, _PNG, _GIF, _BMP, _OTHER_BMP = range(6)
_AHEAD = 4


@dataclass(frozen=True)
class PixelSpec:
    """How the images of one source become the encoder's input.

    `shape` is (H, W, C); without `resize` the images must have it already. `scale` is one of
    `unit`, `symmetric`, `none`.
    """

    shape: tuple[int, int, int]
    scale: str
    resize: bool = True
    max_pixels: int = 1 << 62


@dataclass(frozen=True)
class Batch:
    """Some records of a shard: their positions in it, images (n, H, W, C) float32, and PNGs."""

    positions: Array
    images: Array
    thumbnails: list[bytes]


def file_batches(
    paths: list[bytes], pixels: PixelSpec, batch_size: int, threads: int
) -> Iterator[Batch]:
    """Decode image files ahead on `threads` threads; those that cannot be decoded are left out."""
    import tensorflow as tf

    decode = _file_decoder(pixels)
    records = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), paths))
    return _batches(records.map(decode, threads, deterministic=True), batch_size, threads)


def array_batches(images: Any, pixels: PixelSpec, batch_size: int, threads: int) -> Iterator[Batch]:
    """Prepare images in memory: an array (n, H, W, C), or a list of (H, W, C) of any sizes."""
    import tensorflow as tf

    if isinstance(images, np.ndarray):
        records = tf.data.Dataset.from_tensor_slices((np.arange(len(images)), images))
    else:
        image = tf.TensorSpec((None, None, images[0].shape[-1]), images[0].dtype)
        records = tf.data.Dataset.from_generator(
            lambda: enumerate(images), output_signature=(tf.TensorSpec((), tf.int64), image)
        )
    prepare = _array_decoder(pixels)
    return _batches(records.map(prepare, threads, deterministic=True), batch_size, threads)


def _batches(records: Any, batch_size: int, threads: int) -> Iterator[Batch]:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    batched = records.ignore_errors().batch(batch_size).prefetch(_AHEAD).with_options(options)
    for positions, images, thumbnails in batched.as_numpy_iterator():
        yield Batch(positions, images, list(thumbnails))


@functools.cache
def _file_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def decode(position: Any, path: Any) -> Any:
        content = tf.io.read_file(path)
        kind, count = _header(content)
        known = (kind != _UNKNOWN) & (kind != _OTHER_BMP)
        with tf.control_dependencies(
            [tf.debugging.Assert(known & (count <= pixels.max_pixels), [kind])]
        ):
            image = _decoded(tf.identity(content))
        return position, _prepared(image, pixels), _thumbnail(image)

    return decode


@functools.cache
def _array_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def decode(position: Any, image: Any) -> Any:
        shown = image if image.dtype == tf.uint8 else _display(image)
        return position, _prepared(image, pixels), _thumbnail(shown)

    return decode


def _decoded(content: Any) -> Any:
    import tensorflow as tf

    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def _prepared(image: Any, pixels: PixelSpec) -> Any:
    """Resize, turn grey where the encoder takes one channel, and scale; gives (H, W, C) float32."""
    import tensorflow as tf

    height, width, channels = pixels.shape
    image = tf.image.resize(image, (height, width)) if pixels.resize else tf.cast(image, tf.float32)
    if channels == 1 and image.shape[-1] == 3:
        image = tf.image.rgb_to_grayscale(image)
    image = tf.ensure_shape(image, pixels.shape)
    match pixels.scale:
        case "unit":
            return image / 255.0
        case "symmetric":
            return image / 127.5 - 1.0
    return image


def _thumbnail(image: Any) -> Any:
    """Encode an image (H, W, C), 0 to 255, as a PNG of at most THUMBNAIL pixels a side."""
    import tensorflow as tf

    channels = image.shape[-1]
    if channels not in (1, 3):
        image = image[..., : 3 if channels > 3 else 1]
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    factor = tf.minimum(1.0, THUMBNAIL / tf.reduce_max(sides))
    size = tf.maximum(1, tf.cast(tf.round(sides * factor), tf.int32))
    small = tf.image.resize(image[None], size, "area")[0]
    return tf.io.encode_png(tf.saturate_cast(tf.round(small), tf.uint8), compression=1)


def _display(image: Any) -> Any:
    """Bring float pixels to 0 to 255, from [0,1], [-1,1], [0,255] or, stretched, any range."""
    import tensorflow as tf

    image = tf.cast(image, tf.float32)
    image = tf.where(tf.math.is_finite(image), image, 0.0)
    low, high = tf.reduce_min(image), tf.reduce_max(image)
    stretched = (image - low) * 255.0 / tf.maximum(high - low, 1e-12)
    shown = tf.where((low >= 0.0) & (high <= 255.0), image, stretched)
    shown = tf.where((low >= -1.0) & (high <= 1.0), (image + 1.0) * 127.5, shown)
    return tf.where((low >= 0.0) & (high <= 1.0), image * 255.0, shown)


def _header(content: Any) -> tuple[Any, Any]:
    """Read an image file's kind and its number of pixels from its first bytes."""
    import tensorflow as tf

    padded = tf.strings.join([tf.strings.substr(content, 0, _HEADER), "\0" * _HEADER])
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(padded, 0, _HEADER), tf.uint8), tf.int64)
    head = tf.ensure_shape(head, (_HEADER,))

    def starts_with(magic: bytes) -> Any:
        return tf.reduce_all(head[: len(magic)] == np.frombuffer(magic, np.uint8).astype(np.int64))

    def number(at: int, size: int, big: bool = False) -> Any:
        weights = 256 ** np.arange(size, dtype=np.int64)
        return tf.reduce_sum(head[at : at + size] * (weights[::-1] if big else weights))

    def jpeg_pixels() -> Any:
        return tf.cast(
            tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.int64)), tf.int64
        )

    # TensorFlow reads BMP with 24 or 32 bits a pixel, without palette or compression, rightly.
    plain_bmp = (number(28, 2) == 24) & (number(30, 2) == 0)
    kinds = [
        (starts_with(b"\xff\xd8\xff"), lambda: (_constant(_JPEG), jpeg_pixels())),
        (
            starts_with(b"\x89PNG\r\n\x1a\n"),
            lambda: (_constant(_PNG), number(16, 4, big=True) * number(20, 4, big=True)),
        ),
        (starts_with(b"GIF8"), lambda: (_constant(_GIF), number(6, 2) * number(8, 2))),
        (
            starts_with(b"BM"),
            lambda: (
                tf.where(plain_bmp, _constant(_BMP), _constant(_OTHER_BMP)),
                number(18, 4) * _magnitude(number(22, 4)),
            ),
        ),
    ]
    return tf.case(kinds, default=lambda: (_constant(_UNKNOWN), _constant(0)))  # type: ignore[no-any-return]


def _constant(value: int) -> Any:
    import tensorflow as tf

    return tf.constant(value, tf.int64)


def _magnitude(unsigned: Any) -> Any:
    # A BMP stored from the top has a negative height.
    import tensorflow as tf

    return tf.minimum(unsigned, (1 << 32) - unsigned)


def diagnose(path: bytes, planned_size: int | None, pixels: PixelSpec) -> str | Batch:
    """Say why a file was left out, as one of the fixed reasons; or give it, if it now decodes.

    Raises:
        InputError: it was there when planned and is gone.
        RunError: the storage fails.
    """
    import tensorflow as tf

    shown = path.decode("utf-8", "backslashreplace")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if planned_size is None:
            return "missing"
        raise InputError(f"{shown}: it was there when the run was planned and is gone") from error
    except (PermissionError, IsADirectoryError):
        return "unreadable"
    except OSError as error:
        raise RunError(f"{shown}: cannot be read: {error.strerror}") from error
    if not content:
        return "empty file"
    try:
        kind, count = (int(value) for value in _header(tf.constant(content)))
    except tf.errors.OpError:
        return "corrupt image"
    if kind == _UNKNOWN:
        return "not an image"
    if kind == _OTHER_BMP:
        return "unsupported image"
    if count > pixels.max_pixels:
        return "too many pixels"
    try:
        image = _decoded(tf.constant(content))
        prepared, thumbnail = _prepared(image, pixels), _thumbnail(image)
    except (tf.errors.OpError, ValueError):
        return "corrupt image"
    return Batch(np.zeros(1, np.int64), prepared.numpy()[None], [thumbnail.numpy()])
