# SPDX-License-Identifier: Apache-2.0
"""The images in the elements of a dataset: arrays, tensors, Pillow images or encoded files."""

from typing import Any

import numpy as np

from ray_embed.core.keys import make_key
from ray_embed.errors import InputError
from ray_embed.sources.array_checks import is_channels_first
from ray_embed.sources.image_contents import get_path, is_content, read_content, unwrap_strings
from ray_embed.sources.label_lists import find_lists
from ray_embed.sources.label_vectors import VECTOR_TYPES
from ray_embed.sources.pillow_images import choose_mode, convert_image, is_pillow_image

Image = np.ndarray[Any, Any]
_ENCODED = "encoded files"


class ImageConverter:
    """Converts the images of one dataset. All must be like the first one.

    Args:
        where: how messages refer to the dataset.
        notes: gets messages for the user about what was decided.
        label_type: the option, which says whether labels are vectors.
    """

    def __init__(self, where: str, notes: list[str], label_type: str) -> None:
        self._where, self._notes, self._label_option = where, notes, label_type
        # The type of the first image: encoded, or that of its pixels.
        self._image_type: str | None = None
        # The mode of the first Pillow image.
        self._first_mode: str | None = None

    def convert(self, value: Any, label: Any, position: int) -> tuple[Any, list[str | None], bool]:
        """Return the images of an element, their paths, and whether the element is a batch.

        The images are an array (n, H, W, C), or a list of (H, W, C) arrays or of the contents of
        image files.

        Args:
            value: the image or images.
            label: the label or labels, which tell whether (N, H, W) is a batch.
            position: the number of the element, for messages.

        Raises:
            InputError: the value is no image, or unlike the first one.
            StorageError: the file of an image cannot be read.
        """
        images, paths, is_batch = self._convert(unwrap_strings(value), label)
        self._check_type(images, position)
        return images, paths, is_batch

    def _convert(self, value: Any, label: Any) -> tuple[Any, list[str | None], bool]:
        is_list = isinstance(value, (list, tuple))
        items = value if is_list else [value]
        contents = [item for item in items if item is not None]
        if all(map(is_content, contents)) and (contents or self._image_type == _ENCODED):
            contents = [read_content(item, self._where) for item in items]
            paths = [path and make_key(path) for path in map(get_path, items)]
            return contents, paths, is_list
        if is_list and any(map(is_pillow_image, items)):
            return [self._to_pixels(item) for item in items], [None] * len(items), True
        images = self._to_pixels(value, label)
        is_batch = images.ndim == 4
        if not is_batch:
            images = images[None]
        return images, [None] * len(images), is_batch

    def _to_pixels(self, value: Any, label: Any = None) -> Image:
        """Return an image (H, W, C) or a batch (N, H, W, C), uint8 or float32."""
        image = self._to_image(value)
        if image.dtype != np.uint8:
            if image.dtype.kind not in "fiu" and image.dtype.name != "bfloat16":
                raise InputError(
                    f"{self._where}: img has dtype {image.dtype}; expected numbers. Decode the "
                    "images in the dataset function, or give the bytes of image files"
                )
            image = image.astype(np.float32)
        if image.ndim == 2 or self._is_gray_batch(image, label):
            image = image[..., None]
        if image.ndim not in (3, 4):
            raise InputError(
                f"{self._where}: img has shape {image.shape}; expected (H, W, C), (H, W), or (N, "
                "H, W, C) for batches"
            )
        self._check_channels(image.shape, value)
        return image

    def _check_type(self, images: Any, position: int) -> None:
        """Check that all images are encoded, or that all have the same type of pixels."""
        if not len(images):
            return
        type_ = str(images[0].dtype) if isinstance(images[0], np.ndarray) else _ENCODED
        self._image_type = self._image_type or type_
        if type_ != self._image_type:
            raise InputError(
                f"{self._where}: the images are {type_} in element {position}, but were "
                f"{self._image_type} before; give all of them in one form"
            )

    def _to_image(self, value: Any) -> Image:
        """Return an image as an array; the notes say how Pillow images are converted."""
        if not is_pillow_image(value):
            return to_array(value, self._where, "img")
        if self._first_mode is None:
            self._first_mode = choose_mode(value)
            self._notes.append(
                "the images are Pillow images: palette and CMYK images become RGB, and gray ones "
                "lose their alpha channel"
                + ("; gray and RGBA images become RGB" if self._first_mode == "RGB" else "")
            )
        try:
            return convert_image(value, self._first_mode)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self._where}: a Pillow image cannot be converted to an array: {error}"
            ) from error

    def _is_gray_batch(self, image: Image, label: Any) -> bool:
        """Return whether a rank-3 array is a grayscale batch (N, H, W), judging by its N labels."""
        if image.ndim != 3 or image.shape[-1] <= 4:
            return False
        if label is None or isinstance(label, (dict, tuple)):
            return False
        if (lists := find_lists(label)) is not None:
            return len(lists) == len(image)
        shape = to_array(label, self._where, "gt").shape
        if self._label_option in VECTOR_TYPES:
            return len(shape) == 2 and shape[0] == len(image)
        return shape in (image.shape[:1], (len(image), 1))

    def _check_channels(self, shape: tuple[int, ...], value: Any) -> None:
        if not is_channels_first(shape[-3:]):
            return
        order = (1, 2, 0) if len(shape) == 3 else (0, 2, 3, 1)
        fix = (
            f"img.permute{order}"
            if hasattr(value, "permute")
            else f"np.transpose(img, {order}), or dataset.map(lambda img, *others: "
            f"(tf.transpose(img, {order}), *others))"
        )
        raise InputError(
            f"{self._where}: img has shape {shape}, with the channels first (NCHW); they must be "
            f"last: use {fix}"
        )


def to_array(value: Any, where: str, what: str) -> np.ndarray[Any, Any]:
    """Return a value as an array.

    Raises:
        InputError: it cannot be converted; `what` names it.
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: {what} cannot be converted to an array: {error}") from error
