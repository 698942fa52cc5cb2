# SPDX-License-Identifier: Apache-2.0
"""Keys: how a record is called, as valid Unicode text."""


def make_key(path: str | bytes) -> str:
    r"""Give a path as a key; bytes that are not UTF-8 become ``\xNN``.

    Names from the operating system hold such bytes as lone surrogates (PEP 383).
    """
    if isinstance(path, str):
        if path.isascii():
            return path
        path = path.encode("utf-8", "surrogateescape")
    return path.decode("utf-8", "backslashreplace")
