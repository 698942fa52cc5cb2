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

from ray_embed import thumbnail
from ray_embed.errors import InputError, StorageError

Array = np.ndarray[Any, Any]

_HEADER = 32
_UNKNOWN, _JPEG, _PNG, _GIF, _BMP, _OTHER_BMP = range(6)
_AHEAD = 4
# A JPEG may scan its pixels any number of times. Usual are about ten; so many pixels times scans
# take ten seconds or so. A scan has at least so many bytes.
_MOST_SCANNED, _SCAN_BYTES = 10**11, 10


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
    """Some records of a shard: their positions in it, and images (n, H, W, C) float32.

    `thumbnails` is (n, SIDE, SIDE, 1 or 3) uint8, of which each uses its `sizes`, (n, 2), from the
    upper left.
    """

    positions: Array
    images: Array
    thumbnails: Array
    sizes: Array

    def pngs(self) -> Iterator[bytes]:
        """Give each thumbnail as a PNG."""
        for picture, (height, width) in zip(self.thumbnails, self.sizes.tolist(), strict=True):
            yield thumbnail.encode_png(picture[:height, :width])


def file_batches(
    paths: list[bytes], pixels: PixelSpec, batch_size: int, threads: int
) -> Iterator[Batch]:
    """Decode image files ahead on `threads` threads; those that cannot be decoded are left out."""
    import tensorflow as tf

    return _read(_file_dataset(pixels, batch_size, threads)(tf.constant(paths, tf.string)))


@functools.cache
def _file_dataset(pixels: PixelSpec, batch_size: int, threads: int) -> Any:
    """Give the function from paths to a dataset, traced once for all shards."""
    import tensorflow as tf

    def dataset(paths: Any) -> Any:
        positions = tf.range(tf.shape(paths, tf.int64)[0])
        records = tf.data.Dataset.from_tensor_slices((positions, paths))
        return _batched(records, _file_decoder(pixels), batch_size, threads)

    return tf.function(dataset, [tf.TensorSpec([None], tf.string)], autograph=False)


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
    return _read(_batched(records, _array_decoder(pixels), batch_size, threads))


def _batched(records: Any, decode: Any, batch_size: int, threads: int) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    # They find nothing to do here, and take longer for each shard than decoding many images.
    options.experimental_optimization.apply_default_optimizations = False
    decoded = records.map(decode, threads, deterministic=True).ignore_errors()
    return decoded.batch(batch_size).prefetch(_AHEAD).with_options(options)


def _read(dataset: Any) -> Iterator[Batch]:
    for batch in dataset.as_numpy_iterator():
        yield Batch(*batch)


def _file_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    def decode(position: Any, path: Any) -> Any:
        content = tf.io.read_file(path)
        kind, count, scanned = _header(content)
        known = tf.not_equal(kind, _UNKNOWN) & tf.not_equal(kind, _OTHER_BMP)
        fits = (count <= pixels.max_pixels) & (scanned <= _MOST_SCANNED)
        # Decoding nothing fails.
        image = _decoded(tf.where(known & fits, content, b""))
        return position, *_prepared(image, image, pixels)

    return decode


@functools.cache
def _array_decoder(pixels: PixelSpec) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def decode(position: Any, image: Any) -> Any:
        shown = image if image.dtype == tf.uint8 else _display(image)
        return position, *_prepared(image, shown, pixels)

    return decode


def _decoded(content: Any) -> Any:
    import tensorflow as tf

    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def _prepared(image: Any, shown: Any, pixels: PixelSpec) -> tuple[Any, Any, Any]:
    """Make the encoder's input, and the thumbnail.

    Args:
        image: (h, w, c), as stored.
        shown: the same with values from 0 to 255.
        pixels: what the encoder takes.

    Returns:
        (H, W, C) float32, resized, grey where the encoder takes one channel, and scaled; the
        thumbnail uint8, padded to a square; its height and width.
    """
    import tensorflow as tf

    height, width, channels = pixels.shape
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    if pixels.resize:
        resized = tf.image.resize(image, (height, width))
    else:
        resized = tf.cast(image, tf.float32)
    factor = thumbnail.SIDE / tf.reduce_max(sides)
    if image is shown and min(height, width) >= thumbnail.SIDE:
        # What the encoder sees is at hand, and shrinks in a fraction of the time of a big image.
        method = "bilinear" if max(height, width) < 2 * thumbnail.SIDE else "area"
        picture = _thumbnail(resized, sides * factor, method)
    else:
        picture = _thumbnail(shown, sides * tf.minimum(1.0, factor), "area")
    if channels == 1 and image.shape[-1] == 3:
        resized = tf.image.rgb_to_grayscale(resized)
    resized = tf.ensure_shape(resized, pixels.shape)
    match pixels.scale:
        case "unit":
            resized = resized / 255.0
        case "symmetric":
            resized = resized / 127.5 - 1.0
    return resized, *picture


def _thumbnail(image: Any, sides: Any, method: str) -> tuple[Any, Any]:
    """Shrink an image, 0 to 255, to these sides; gives it padded, and its height and width."""
    import tensorflow as tf

    channels = image.shape[-1]
    if channels not in (1, 3):
        image = image[..., : 3 if channels > 3 else 1]
    size = tf.maximum(1, tf.cast(tf.round(sides), tf.int32))
    small = tf.image.resize(image[None], size, method)[0]
    right = [[0, thumbnail.SIDE - size[0]], [0, thumbnail.SIDE - size[1]], [0, 0]]
    return tf.pad(tf.saturate_cast(tf.round(small), tf.uint8), right), size


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


def _header(content: Any) -> tuple[Any, Any, Any]:
    """Read an image file's kind, its pixels, and those that are scanned, each as often as it is.

    The last number may be smaller where it is small enough.
    """
    import tensorflow as tf

    def jpeg() -> tuple[Any, Any, Any]:
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(content, tf.int64))
        count = height * width
        most = count * tf.cast(tf.strings.length(content), tf.int64) // _SCAN_BYTES
        looked_at = tf.where(most > _MOST_SCANNED, content, b"")
        pieces = tf.raw_ops.StringSplitV2(input=looked_at[None], sep=b"\xff\xda").values
        return _constant(_JPEG), count, count * tf.size(pieces, tf.int64)

    def gif() -> tuple[Any, Any, Any]:
        count = tf.numpy_function(_pixels_of_gif, [content], tf.int64)
        return _constant(_GIF), tf.ensure_shape(count, ()), _constant(0)

    def other() -> tuple[Any, Any, Any]:
        return *_other_header(content), _constant(0)

    is_jpeg = tf.equal(tf.strings.substr(content, 0, 3), b"\xff\xd8\xff")
    is_gif = tf.equal(tf.strings.substr(content, 0, 4), b"GIF8")
    branch = tf.cast(is_jpeg, tf.int32) + 2 * tf.cast(is_gif, tf.int32)
    return tf.switch_case(branch, [other, jpeg, gif])  # type: ignore[no-any-return]


def _other_header(content: Any) -> tuple[Any, Any]:
    """Read it of others; without branches, each of which takes long to set up again."""
    import tensorflow as tf

    start = tf.strings.substr(content, 0, _HEADER)
    padded = tf.strings.substr(tf.strings.join([start, "\0" * _HEADER]), 0, _HEADER)
    head = tf.ensure_shape(tf.cast(tf.io.decode_raw(padded, tf.uint8), tf.int64), (_HEADER,))
    png_width, png_height, bmp_width, bmp_height, bits, packed = tf.unstack(
        tf.linalg.matvec(_NUMBERS, head)
    )
    # TensorFlow reads BMP with 24 or 32 bits a pixel, without palette or compression, rightly.
    plain_bmp = tf.where(tf.equal(bits, 24) & tf.equal(packed, 0), _BMP, _OTHER_BMP)
    # A BMP stored from the top has a negative height.
    bmp_height = tf.minimum(bmp_height, (1 << 32) - bmp_height)
    kinds = [
        (b"\x89PNG\r\n\x1a\n", _constant(_PNG), png_width * png_height),
        (b"BM", tf.cast(plain_bmp, tf.int64), bmp_width * bmp_height),
    ]
    found, count = _constant(_UNKNOWN), _constant(0)
    for magic, kind, pixels in kinds:
        is_it = tf.equal(tf.strings.substr(content, 0, len(magic)), magic)
        found, count = tf.where(is_it, kind, found), tf.where(is_it, pixels, count)
    return found, count


def _pixels_of_gif(given: Any) -> Any:
    """Give the pixels that decoding a GIF takes: its screen is only what it says.

    TensorFlow makes an image of the largest frame's width and height, in three bytes a pixel, and
    keeps all frames, in one byte. The blocks are those of the GIF89a specification.
    """
    content: bytes = given.item() if isinstance(given, np.ndarray) else given
    width, height = (int.from_bytes(content[at : at + 2], "little") for at in (6, 8))
    at = 13 + _colours(content[10:11])
    area = 0
    while at < len(content):
        match content[at]:
            case 0x21:
                at += 2
            case 0x2C:
                frame = [int.from_bytes(content[at + i : at + i + 2], "little") for i in (5, 7)]
                width, height = max(width, frame[0]), max(height, frame[1])
                area += frame[0] * frame[1]
                at += 11 + _colours(content[at + 9 : at + 10])
            case _:
                break
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    return np.int64(max(width * height, -(-area // 3)))


def _colours(flags: bytes) -> int:
    """Give the bytes of a colour table, of which there may be none."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _constant(value: int) -> Any:
    import tensorflow as tf

    return tf.constant(value, tf.int64)


def _places() -> Array:
    """Give the matrix that makes numbers of the first bytes: width and height of each kind."""
    little, big = 256 ** np.arange(4), 256 ** np.arange(4)[::-1]
    matrix = np.zeros((6, _HEADER), np.int64)
    for row, (at, weights) in enumerate(
        [
            *((16, big), (20, big)),
            *((18, little), (22, little), (28, little[:2]), (30, little[:2])),
        ]
    ):
        matrix[row, at : at + len(weights)] = weights
    return matrix


_NUMBERS = _places()


def diagnose(path: bytes, pixels: PixelSpec) -> str | Batch:
    """Say why a file was left out, as one of the fixed reasons; or give it, if it now decodes.

    Raises:
        InputError: it was there when planned and is gone.
        StorageError: the storage fails.
    """
    import tensorflow as tf

    shown = path.decode("utf-8", "backslashreplace")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{shown}: it is gone since the run was planned") from error
    except (PermissionError, IsADirectoryError):
        return "unreadable"
    except OSError as error:
        raise StorageError(f"{shown}: cannot be read: {error.strerror}") from error
    if not content:
        return "empty file"
    try:
        kind, count, scanned = (int(value) for value in _header(tf.constant(content)))
    except tf.errors.OpError:
        return "corrupt image"
    if kind == _UNKNOWN:
        return "not an image"
    if kind == _OTHER_BMP:
        return "unsupported image"
    if count > pixels.max_pixels:
        return "too many pixels"
    if scanned > _MOST_SCANNED:
        return "too many scans"
    try:
        image = _decoded(tf.constant(content))
        prepared = [value.numpy()[None] for value in _prepared(image, image, pixels)]
    except (tf.errors.OpError, ValueError):
        return "corrupt image"
    return Batch(np.zeros(1, np.int64), *prepared)
