# SPDX-License-Identifier: Apache-2.0
"""Make keys, which name records and are valid Unicode text."""


def make_key(path: str | bytes) -> str:
    r"""Return a path as a key. Bytes that are not UTF-8 become ``\xNN``.

    File names from the operating system represent such bytes as lone surrogates (PEP 383).
    """
    if isinstance(path, str):
        if path.isascii():
            return path
        path = _encode(path)
    return path.decode("utf-8", "backslashreplace")


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half of a character, in a text that is no file name.
        return text.encode("utf-8", "surrogatepass")
