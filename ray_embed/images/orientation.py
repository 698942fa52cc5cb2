# SPDX-License-Identifier: Apache-2.0
"""The orientation that a camera records in a JPEG, and how to turn the pixels upright.

The tag is 0x0112 of the Exif specification (CIPA DC-008): 1 is upright, and 2 to 8 are the other
combinations of mirroring and rotation.
"""

from typing import Any

# Cameras write Exif first, or right after the 18 bytes of JFIF; nothing beyond is searched.
_SEARCHED = 512
_ENTRIES = rb"\C\C(?:\C{12})*?"
_LITTLE = rb"II\*\x00\x08\x00\x00\x00" + _ENTRIES + rb"\x12\x01\x03\x00\x01\x00\x00\x00%s\x00"
_BIG = rb"MM\x00\*\x00\x00\x00\x08" + _ENTRIES + rb"\x01\x12\x00\x03\x00\x00\x00\x01\x00%s"
# `\C` is any byte; RE2 reads a pattern as UTF-8, in which the markers of a JPEG cannot be written.
_HEADER = rb"\C\C(?:\C{4}JFIF\C{10})?\C{4}Exif\x00\x00(?:%s|%s)\C*"


def is_turned(content: Any, orientations: str = r"[\x02-\x08]") -> Any:
    """Return, as a bool tensor, whether an encoded image records one of these orientations.

    Args:
        content: the bytes of a file, as a string tensor.
        orientations: a character class of a regular expression; by default, all but upright.
    """
    import tensorflow as tf

    wanted = orientations.encode()
    pattern = _HEADER % (_LITTLE % wanted, _BIG % wanted)
    return tf.strings.regex_full_match(tf.strings.substr(content, 0, _SEARCHED), pattern)


def turn_upright(image: Any, content: Any) -> Any:
    """Return the image (H, W, C) turned upright, according to its orientation tag.

    Args:
        image: the decoded pixels.
        content: the bytes that they were decoded from.
    """
    import tensorflow as tf

    def turned() -> Any:
        def if_one_of(orientations: str, turn: Any, pixels: Any) -> Any:
            return tf.cond(is_turned(content, orientations), lambda: turn(pixels), lambda: pixels)

        upright = if_one_of(r"[\x05-\x08]", lambda pixels: tf.transpose(pixels, (1, 0, 2)), image)
        upright = if_one_of(r"[\x02\x03\x06\x07]", lambda pixels: pixels[:, ::-1], upright)
        return if_one_of(r"[\x03\x04\x07\x08]", lambda pixels: pixels[::-1], upright)

    return tf.cond(is_turned(content), turned, lambda: image)
