# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, by who can mend it. The command line turns these into exit codes."""

import re

# Keras colors and emboldens parts of its messages, whether or not a terminal shows them.
_ANSI_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class RayEmbedError(Exception):
    """Base of the errors below: a sentence for the user, shown without a traceback.

    Args:
        arguments: the message first; ANSI codes are removed from it, as it may quote Keras.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_ansi(a) if isinstance(a, str) else a for a in arguments))


class InputError(RayEmbedError):
    """What the user gave does not fit; the message names the thing, its value and the mend."""

    exit_code = 2


class RunError(RayEmbedError):
    """The run failed while working; finished shards are kept.

    Args:
        message: what happened, and the mend.
        goes_on: whether the same command can go on from here.
    """

    def __init__(self, message: str, goes_on: bool = True) -> None:
        super().__init__(message, goes_on)
        self.goes_on = goes_on

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(RunError):
    """A file cannot be read or written: a full disk, no rights, a file system that fails."""


class DamagedError(RunError):
    """A part is not what was written; extracting its shard again mends it.

    Args:
        message: which part, and what is wrong.
        number: the shard.
    """

    exit_code = 2

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, goes_on=False)
        self.number = number
        # What pickle calls the class with.
        self.args = (self.args[0], number)

    def __str__(self) -> str:
        return f"{self.args[0]}; `ray-embed run` with the same options extracts it again"


def first_line(error: Exception) -> str:
    """Give the first line of another library's error, for a message of ours."""
    return without_ansi(str(error)).strip().partition("\n")[0][:200]


def without_ansi(text: str) -> str:
    """Return the text without ANSI color codes."""
    return _ANSI_CODE.sub("", text)
