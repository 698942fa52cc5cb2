# SPDX-License-Identifier: Apache-2.0
"""Decode and preprocess image files and arrays into batches, with a thumbnail of each image.

Decoding and resizing match ``keras.utils.image_dataset_from_directory``, so that the encoder sees
the same pixels as in training: `tf.io.decode_image` with the encoder's number of channels, then
`tf.image.resize` (by default bilinear, without antialiasing). Records that cannot be decoded are
missing from the batches; :func:`diagnose` returns the reason.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.images import thumbnails as thumbnails_module
from ray_embed.images.headers import (
    JPEG,
    MAX_SCANNED_PIXELS,
    PNG,
    UNKNOWN,
    UNSUPPORTED_BMP,
    read_header,
)
from ray_embed.images.orientation import is_turned, turn_upright
from ray_embed.images.resizing import resize

_PREFETCHED_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """The preprocessing of the images of a source.

    `shape` is (H, W, C). `resize` is `stretch`, `crop` or `pad`, or None if the images must already
    have this shape; `crop_fraction`, `interpolation` and `antialias` are those of
    `ray_embed.images.resizing.resize`. `scale` is `unit`, `symmetric` or `none`. Then `mean` is
    subtracted and the result is divided by `std`; each is one number, or one per channel in the
    encoder's channel order. `repeat_channel` converts one channel to three.
    """

    shape: tuple[int, int, int]
    scale: str
    resize: str | None = "stretch"
    crop_fraction: float | None = None
    interpolation: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reverse_channels: bool = False
    repeat_channel: bool = False
    apply_orientation: bool = False
    max_pixels: int = 1 << 62
    takes_bytes: bool = False


@dataclass(frozen=True)
class Batch:
    """A batch of records: their positions in the shard, and the preprocessed images (n, H, W, C)
    float32.

    For encoders that take encoded images, `images` contains the file contents, (n,) bytes.

    `thumbnails` is (n, MAX_SIDE, MAX_SIDE, 1 or 3) uint8; each occupies the upper left `sizes`, (n,
    2), pixels. `turned`, (n,) bool, is whether the file has a non-default EXIF orientation.
    """

    positions: Array
    images: Array
    thumbnails: Array
    sizes: Array
    turned: Array

    def encode_thumbnails(self) -> Iterator[bytes]:
        """Yield each thumbnail as a PNG."""
        for picture, (height, width) in zip(self.thumbnails, self.sizes.tolist(), strict=True):
            yield thumbnails_module.encode_png(picture[:height, :width])


def file_batches(
    paths: list[bytes], pixels: PixelSpec, batch_size: int, threads: int
) -> Iterator[Batch]:
    """Decode image files in parallel with prefetching. Files that cannot be decoded are skipped."""
    import tensorflow as tf

    return _iterate_batches(
        _make_file_dataset(pixels, batch_size, threads)(tf.constant(paths, tf.string))
    )


@functools.cache
def _make_file_dataset(pixels: PixelSpec, batch_size: int, threads: int) -> Any:
    """Return a function that maps paths to a dataset. It is traced once for all shards."""
    import tensorflow as tf

    def dataset(paths: Any) -> Any:
        positions = tf.range(tf.shape(paths, tf.int64)[0])
        records = tf.data.Dataset.from_tensor_slices((positions, paths))
        return _batch_records(records, _make_file_decoder(pixels), batch_size, threads)

    return tf.function(dataset, [tf.TensorSpec([None], tf.string)], autograph=False)


def content_batches(
    contents: Iterable[bytes], pixels: PixelSpec, batch_size: int, threads: int
) -> Iterator[Batch]:
    """Like :func:`file_batches`, for the contents of image files; raises what `contents` raises."""
    import tensorflow as tf

    # TensorFlow would end the dataset where the iterator raises, and drop the error.
    errors: list[Exception] = []

    def number_contents() -> Iterator[tuple[int, bytes]]:
        try:
            yield from enumerate(contents)
        except Exception as error:
            errors.append(error)

    records = tf.data.Dataset.from_generator(
        number_contents,
        output_signature=(tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.string)),
    )
    yield from _iterate_batches(
        _batch_records(records, _make_content_decoder(pixels), batch_size, threads)
    )
    if errors:
        raise errors[0]


def array_batches(images: Any, pixels: PixelSpec, batch_size: int, threads: int) -> Iterator[Batch]:
    """Preprocess in-memory images: an array (n, H, W, C), or a list of (H, W, C) of any sizes."""
    import tensorflow as tf

    if isinstance(images, np.ndarray):
        records = tf.data.Dataset.from_tensor_slices((np.arange(len(images)), images))
    else:
        image = tf.TensorSpec((None, None, images[0].shape[-1]), images[0].dtype)
        records = tf.data.Dataset.from_generator(
            lambda: enumerate(images), output_signature=(tf.TensorSpec((), tf.int64), image)
        )
    return _iterate_batches(
        _batch_records(records, _make_array_decoder(pixels), batch_size, threads)
    )


def _batch_records(records: Any, decode: Any, batch_size: int, threads: int) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    # Graph optimizations do not help here, and take longer per shard than decoding many images.
    options.experimental_optimization.apply_default_optimizations = False
    images = records.map(decode, threads, deterministic=True).ignore_errors()
    return images.batch(batch_size).prefetch(_PREFETCHED_BATCHES).with_options(options)


def _iterate_batches(dataset: Any) -> Iterator[Batch]:
    for batch in dataset.as_numpy_iterator():
        yield Batch(*batch)


def _make_file_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    def decode(position: Any, path: Any) -> Any:
        content = tf.io.read_file(path)
        return position, *_keep_bytes(content, _decode_content(content, pixels), pixels)

    return decode


@functools.cache
def _make_content_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def decode(position: Any, content: Any) -> Any:
        return position, *_keep_bytes(content, _decode_content(content, pixels), pixels)

    return decode


def _keep_bytes(content: Any, prepared: tuple[Any, ...], pixels: PixelSpec) -> tuple[Any, ...]:
    """Replace the pixels by the file contents if the encoder takes encoded images."""
    # Files are decoded in any case, so that invalid images never reach the encoder.
    return (content, *prepared[1:]) if pixels.takes_bytes else prepared


def _decode_content(content: Any, pixels: PixelSpec) -> tuple[Any, ...]:
    import tensorflow as tf

    kind, count, scanned = read_header(content)
    known = tf.not_equal(kind, UNKNOWN) & tf.not_equal(kind, UNSUPPORTED_BMP)
    fits = (count <= pixels.max_pixels) & (scanned <= MAX_SCANNED_PIXELS)
    # Decoding an empty string fails, which rejects the record.
    return _decode_image(tf.where(known & fits, content, b""), kind, pixels)


@functools.cache
def _make_array_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def decode(position: Any, image: Any) -> Any:
        levels = image if image.dtype == tf.uint8 else scale_to_255(image)
        return position, *_prepare_image(image, levels, pixels), tf.constant(False)

    return decode


def _decode_image(content: Any, kind: Any, pixels: PixelSpec) -> tuple[Any, ...]:
    """Decode a file.

    Return the result of :func:`_prepare_image`, and whether the file has a non-default orientation.
    """
    image = _decode_to_channels(content, kind, pixels.shape[2])
    if pixels.apply_orientation:
        image = turn_upright(image, content)
    return *_prepare_image(image, image, pixels), is_turned(content)


def _decode_to_channels(content: Any, kind: Any, channels: int) -> Any:
    """Decode to 1, 3 or 4 channels, like Keras' `color_mode`.

    TensorFlow decodes GIF, BMP and CMYK JPEG to three channels only; these are converted to
    grayscale with `tf.image.rgb_to_grayscale`. All formats except PNG get an opaque alpha channel.
    """
    import tensorflow as tf

    def decode(count: int) -> Any:
        image = tf.io.decode_image(content, channels=count, expand_animations=False)
        image.set_shape((None, None, count))
        return image

    match channels:
        case 1:
            return tf.cond(
                tf.equal(kind, PNG) | tf.equal(kind, JPEG),
                lambda: decode(1),
                lambda: tf.image.rgb_to_grayscale(decode(3)),
            )
        case 4:
            opaque = [[0, 0], [0, 0], [0, 1]]
            return tf.cond(
                tf.equal(kind, PNG),
                lambda: decode(4),
                lambda: tf.pad(decode(3), opaque, constant_values=tf.constant(255, tf.uint8)),
            )
    return decode(3)


def _prepare_image(image: Any, levels: Any, pixels: PixelSpec) -> tuple[Any, Any, Any]:
    """Return the preprocessed image and its thumbnail.

    Args:
        image: the decoded image, (h, w, c).
        levels: the same image with values from 0 to 255.
        pixels: the preprocessing.

    Returns:
        The preprocessed image, (H, W, C) float32; the uint8 thumbnail, padded to a square; and the
        height and width of the thumbnail.
    """
    import tensorflow as tf

    height, width, _ = pixels.shape
    if pixels.resize is None:
        resized = tf.cast(image, tf.float32)
    else:
        resized = resize(
            image,
            (height, width),
            pixels.resize,
            pixels.crop_fraction,
            pixels.interpolation,
            pixels.antialias,
        )
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    if image is levels and min(height, width) >= thumbnails_module.MAX_SIDE:
        # Downscaling the resized image is much faster than downscaling a large original.
        if pixels.resize != "stretch" or pixels.crop_fraction is not None:
            sides = tf.constant([height, width], tf.float32)
        method = "bilinear" if max(height, width) < 2 * thumbnails_module.MAX_SIDE else "area"
        factor = thumbnails_module.MAX_SIDE / tf.reduce_max(sides)
        picture = _make_thumbnail(resized, sides * factor, method)
    else:
        factor = thumbnails_module.MAX_SIDE / tf.reduce_max(sides)
        picture = _make_thumbnail(levels, sides * tf.minimum(1.0, factor), "area")
    return tf.ensure_shape(_normalize(resized, pixels), pixels.shape), *picture


def _normalize(image: Any, pixels: PixelSpec) -> Any:
    """Convert resized pixels, (H, W, c) float32, to the encoder's channels and value range."""
    import tensorflow as tf

    if pixels.repeat_channel and image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    if pixels.reverse_channels:
        image = image[..., ::-1]
    match pixels.scale:
        case "unit":
            image = image / 255.0
        case "symmetric":
            image = image / 127.5 - 1.0
    if pixels.mean:
        image = image - tf.constant(pixels.mean, tf.float32)
    if pixels.std:
        image = image / tf.constant(pixels.std, tf.float32)
    return image


def _make_thumbnail(image: Any, sides: Any, method: str) -> tuple[Any, Any]:
    """Downscale an image with values from 0 to 255.

    Return the padded thumbnail, and its height and width.
    """
    import tensorflow as tf

    channels = image.shape[-1]
    if channels not in (1, 3):
        image = image[..., : 3 if channels > 3 else 1]
    size = tf.maximum(1, tf.cast(tf.round(sides), tf.int32))
    small = tf.image.resize(image[None], size, method)[0]
    right = [
        [0, thumbnails_module.MAX_SIDE - size[0]],
        [0, thumbnails_module.MAX_SIDE - size[1]],
        [0, 0],
    ]
    return tf.pad(tf.saturate_cast(tf.round(small), tf.uint8), right), size


def scale_to_255(image: Any) -> Any:
    """Scale float pixels from [0, 1], [-1, 1] or [0, 255] to [0, 255]; stretch other ranges."""
    import tensorflow as tf

    image = tf.cast(image, tf.float32)
    image = tf.where(tf.math.is_finite(image), image, 0.0)
    low, high = tf.reduce_min(image), tf.reduce_max(image)
    stretched = (image - low) * 255.0 / tf.maximum(high - low, 1e-12)
    levels = tf.where((low >= 0.0) & (high <= 255.0), image, stretched)
    levels = tf.where((low >= -1.0) & (high <= 1.0), (image + 1.0) * 127.5, levels)
    return tf.where((low >= 0.0) & (high <= 1.0), image * 255.0, levels)


def decode_file(content: bytes) -> Array:
    """Decode an image file without preprocessing, to (h, w, c) uint8.

    Raises:
        tf.errors.InvalidArgumentError: the file cannot be decoded.
    """
    import tensorflow as tf

    image: Array = tf.io.decode_image(content, expand_animations=False).numpy()
    return image


def diagnose(content: bytes, pixels: PixelSpec) -> str | Batch:
    """Return why a file was skipped, as a fixed reject reason, or the image if it decodes."""
    import tensorflow as tf

    if not content:
        return "empty file"
    try:
        kind, count, scanned = (int(value) for value in read_header(tf.constant(content)))
    except tf.errors.OpError:
        return "corrupt image"
    if kind == UNKNOWN:
        return "not an image"
    if kind == UNSUPPORTED_BMP:
        return "unsupported image"
    if count > pixels.max_pixels:
        return "too many pixels"
    if scanned > MAX_SCANNED_PIXELS:
        return "too many scans"
    try:
        decoded = _decode_image(tf.constant(content), tf.constant(kind, tf.int64), pixels)
        prepared = [value.numpy()[None] for value in decoded]
    except (tf.errors.OpError, ValueError):
        return "corrupt image"
    if pixels.takes_bytes:
        prepared[0] = np.array([content], object)
    return Batch(np.zeros(1, np.int64), *prepared)
