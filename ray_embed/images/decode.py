# SPDX-License-Identifier: Apache-2.0
"""Decode and preprocess image files and arrays into batches, with a thumbnail of each image.

Decoding and resizing match ``keras.utils.image_dataset_from_directory``, so that the encoder sees
the same pixels as in training: `tf.io.decode_image` with the encoder's number of channels, then
`tf.image.resize` (by default bilinear, without antialiasing). Files that TensorFlow does not decode
are left to `ray_embed.images.formats`. Records that cannot be decoded are missing from the batches;
:func:`diagnose` returns the reason.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.images import thumbnails as thumbnails_module
from ray_embed.images.color import COLOR_CHANNELS, decode_to_channels
from ray_embed.images.formats import registry
from ray_embed.images.formats.base import RejectedImage
from ray_embed.images.headers import (
    DEEP_PNG,
    MAX_SCANNED_PIXELS,
    UNKNOWN,
    UNSUPPORTED_BMP,
    read_header,
)
from ray_embed.images.orientation import is_turned, turn_upright
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.images.preparing import prepare_image, reduce_levels, scale_to_255

_PREFETCHED_BATCHES = 4
# Contents are handed to TensorFlow in chunks, because starting a dataset takes as long as decoding
# dozens of small images.
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Batch:
    """A batch of records: their positions in the shard, and the preprocessed images (n, H, W, C)
    float32.

    For encoders that take encoded images, `images` contains the file contents, (n,) bytes.

    `thumbnails` is (n, MAX_SIDE, MAX_SIDE, 1 or 3) uint8; each occupies the upper left `sizes`, (n,
    2), pixels. `turned`, (n,) bool, is whether the file has a non-default EXIF orientation,
    `reduced`, (n,) bool, whether more than 8 bits were reduced to 8, `unscaled`, (n,) bool, whether
    the file has values and not levels, and `passed_over`, (n,) int32, the number of other pages of
    the file.
    """

    positions: Array
    images: Array
    thumbnails: Array
    sizes: Array
    turned: Array
    reduced: Array
    unscaled: Array
    passed_over: Array

    def encode_thumbnails(self) -> Iterator[bytes]:
        """Yield each thumbnail as a PNG."""
        for picture, (height, width) in zip(self.thumbnails, self.sizes.tolist(), strict=True):
            yield thumbnails_module.encode_png(picture[:height, :width])


def file_batches(
    paths: list[bytes],
    pixels: PixelSpec,
    batch_size: int,
    threads: int,
    pages: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Decode image files in parallel with prefetching. Files that cannot be decoded are skipped.

    Args:
        paths: the files.
        pixels: the preprocessing.
        batch_size: the number of images per batch.
        threads: the number of threads.
        pages: the page to take of each file; by default, the first.
    """
    import tensorflow as tf

    dataset = _make_file_dataset(pixels, batch_size, threads)
    numbers = tf.zeros([len(paths)], tf.int64) if pages is None else tf.constant(pages, tf.int64)
    return _iterate_batches(dataset(tf.constant(paths, tf.string), numbers))


@functools.cache
def _make_file_dataset(pixels: PixelSpec, batch_size: int, threads: int) -> Any:
    """Return a function that maps paths and pages to a dataset. It is traced once for all
    shards."""
    import tensorflow as tf

    def dataset(paths: Any, pages: Any) -> Any:
        positions = tf.range(tf.shape(paths, tf.int64)[0])
        records = tf.data.Dataset.from_tensor_slices((positions, paths, pages))
        return _batch_records(records, _make_file_decoder(pixels), batch_size, threads)

    signature = [tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)]
    return tf.function(dataset, signature, autograph=False)


def content_batches(
    contents: Iterable[bytes],
    pixels: PixelSpec,
    batch_size: int,
    threads: int,
    pages: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Like :func:`file_batches`, for the contents of image files; raises what `contents` raises.

    The next contents are read while these are decoded.
    """
    import tensorflow as tf

    dataset = _make_content_dataset(pixels, batch_size, threads)
    chunks = _read_chunks(contents, batch_size)
    first = 0
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(next, chunks, None)
        while (chunk := reading.result()) is not None:
            reading = reader.submit(next, chunks, None)
            stop = first + len(chunk)
            taken = np.asarray(pages[first:stop] if pages else np.zeros(len(chunk)), np.int64)
            yield from _iterate_batches(
                dataset(tf.range(first, stop, dtype=tf.int64), np.array(chunk, object), taken)
            )
            first = stop


def _read_chunks(contents: Iterable[bytes], batch_size: int) -> Iterator[list[bytes]]:
    """Yield contents, whole batches at a time, as many as have about `_CHUNK_BYTES` together."""
    chunk: list[bytes] = []
    size = 0
    for content in contents:
        chunk.append(content)
        size += len(content)
        if size >= _CHUNK_BYTES and len(chunk) % batch_size == 0:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@functools.cache
def _make_content_dataset(pixels: PixelSpec, batch_size: int, threads: int) -> Any:
    """Return a function that maps positions, contents and pages to a dataset. It is traced once for
    all shards."""
    import tensorflow as tf

    def dataset(positions: Any, contents: Any, pages: Any) -> Any:
        records = tf.data.Dataset.from_tensor_slices((positions, contents, pages))
        return _batch_records(records, _make_content_decoder(pixels), batch_size, threads)

    signature = [tf.TensorSpec([None], kind) for kind in (tf.int64, tf.string, tf.int64)]
    return tf.function(dataset, signature, autograph=False)


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

    def decode(position: Any, path: Any, page: Any) -> Any:
        content = tf.io.read_file(path)
        return position, *_keep_bytes(content, _decode_content(content, page, pixels), pixels)

    return decode


def _make_content_decoder(pixels: PixelSpec) -> Any:
    def decode(position: Any, content: Any, page: Any) -> Any:
        return position, *_keep_bytes(content, _decode_content(content, page, pixels), pixels)

    return decode


def _keep_bytes(content: Any, prepared: tuple[Any, ...], pixels: PixelSpec) -> tuple[Any, ...]:
    """Replace the pixels by the file contents if the encoder takes encoded images."""
    # Files are decoded in any case, so that invalid images never reach the encoder.
    return (content, *prepared[1:]) if pixels.takes_bytes else prepared


def _decode_content(content: Any, page: Any, pixels: PixelSpec) -> tuple[Any, ...]:
    import tensorflow as tf

    if pixels.shape[2] not in COLOR_CHANNELS:
        return _decode_other(content, page, pixels)
    kind, count, scanned = read_header(content)
    fits = (count <= pixels.max_pixels) & (scanned <= MAX_SCANNED_PIXELS)
    # Decoding an empty string fails, which rejects the record.
    fitting = tf.where(tf.not_equal(kind, UNSUPPORTED_BMP) & fits, content, b"")
    return tf.cond(  # type: ignore[no-any-return]
        tf.equal(kind, UNKNOWN),
        lambda: _decode_other(content, page, pixels),
        lambda: _decode_image(fitting, kind, pixels),
    )


@functools.cache
def _make_array_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def decode(position: Any, image: Any) -> Any:
        levels = image if image.dtype == tf.uint8 else scale_to_255(image)
        return position, *prepare_image(image, levels, pixels), *_flag()

    return decode


def _decode_image(content: Any, kind: Any, pixels: PixelSpec) -> tuple[Any, ...]:
    """Decode a file with TensorFlow.

    Return the result of :func:`prepare_image`, and that of :func:`_flag`.
    """
    import tensorflow as tf

    image = decode_to_channels(content, kind, pixels)
    if pixels.apply_orientation:
        image = turn_upright(image, content)
    reduced = tf.equal(kind, DEEP_PNG) if pixels.depth == 8 else False
    flags = _flag(turned=is_turned(content), reduced=reduced)
    return *prepare_image(image, reduce_levels(image), pixels), *flags


def _flag(
    turned: Any = False, reduced: Any = False, unscaled: Any = False, passed_over: Any = 0
) -> tuple[Any, ...]:
    """Return the flags of an image; see :class:`Batch`."""
    import tensorflow as tf

    types = (tf.bool, tf.bool, tf.bool, tf.int32)
    return tuple(map(tf.convert_to_tensor, (turned, reduced, unscaled, passed_over), types))


def _decode_other(content: Any, page: Any, pixels: PixelSpec) -> tuple[Any, ...]:
    """Like :func:`_decode_image`, for a file that TensorFlow does not decode."""
    import tensorflow as tf

    # A single operation, because the executor visits each one of a branch that is not taken.
    image, picture, sides, *flags = tf.numpy_function(
        functools.partial(_prepare_other, pixels=pixels),
        [content, page],
        [tf.float32, tf.uint8, tf.int32, tf.bool, tf.bool, tf.bool, tf.int32],
    )
    return (
        tf.ensure_shape(image, pixels.shape),
        tf.ensure_shape(picture, (thumbnails_module.MAX_SIDE, thumbnails_module.MAX_SIDE, None)),
        tf.ensure_shape(sides, (2,)),
        *(tf.ensure_shape(flag, ()) for flag in flags),
    )


def _prepare_other(content: bytes, page: int, *, pixels: PixelSpec) -> list[Any]:
    """Decode and prepare a file that TensorFlow does not decode, without a graph.

    Raises:
        RejectedImage: it cannot be decoded.
    """
    import tensorflow as tf

    decoded = registry.decode_image(content, int(page), _want(pixels))
    # The graph that prepares all other files runs on the CPU too.
    with tf.device("CPU"):
        image = tf.constant(decoded.image)
        unscaled = image.dtype == tf.float32
        if unscaled:
            spec = replace(pixels, scale=pixels.float_scale)
            prepared = prepare_image(image, scale_to_255(image), spec)
        else:
            prepared = prepare_image(image, reduce_levels(image), pixels)
        flags = _flag(decoded.is_turned, decoded.is_reduced, unscaled, decoded.passed_over)
    return [value.numpy() for value in (*prepared, *flags)]


def _want(pixels: PixelSpec) -> registry.Wanted:
    return registry.Wanted(
        channels=pixels.shape[2],
        depth=pixels.depth,
        max_pixels=pixels.max_pixels,
        upright=pixels.apply_orientation,
    )


def decode_file(content: bytes, page: int = 0) -> Array:
    """Decode an image file without preprocessing, to (h, w, c), usually uint8.

    Raises:
        tf.errors.InvalidArgumentError: the file cannot be decoded by TensorFlow.
        RejectedImage: the file cannot be decoded by another library.
    """
    import tensorflow as tf

    if int(read_header(tf.constant(content))[0]) == UNKNOWN:
        return registry.decode_as_stored(content, page)
    image: Array = tf.io.decode_image(content, expand_animations=False).numpy()
    return image


def diagnose(content: bytes, pixels: PixelSpec, page: int = 0) -> str | Batch:
    """Return why a file was skipped, as a fixed reject reason, or the image if it decodes."""
    import tensorflow as tf

    if not content:
        return "empty file"
    try:
        kind, count, scanned = (int(value) for value in read_header(tf.constant(content)))
    except tf.errors.OpError:
        return "corrupt image"
    if kind == UNSUPPORTED_BMP:
        return "unsupported image"
    if count > pixels.max_pixels:
        return "too many pixels"
    if scanned > MAX_SCANNED_PIXELS:
        return "too many scans"
    if kind != UNKNOWN and pixels.shape[2] not in COLOR_CHANNELS:
        return registry.WRONG_CHANNELS
    try:
        if kind == UNKNOWN:
            decoded = _prepare_other(content, page, pixels=pixels)
        else:
            tensors = _decode_image(tf.constant(content), tf.constant(kind, tf.int64), pixels)
            decoded = [value.numpy() for value in tensors]
        prepared = [value[None] for value in decoded]
    except RejectedImage as rejected:
        return str(rejected)
    except (tf.errors.OpError, ValueError):
        return "corrupt image"
    if pixels.takes_bytes:
        prepared[0] = np.array([content], object)
    return Batch(np.zeros(1, np.int64), *prepared)
