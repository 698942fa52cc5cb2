# SPDX-License-Identifier: Apache-2.0
"""The errors that ray_embed raises, by who can fix them; each class has its exit code."""

import re

# Keras puts color codes into its messages, even where no terminal shows them.
_ANSI_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class RayEmbedError(Exception):
    """Base of all errors that ray_embed raises; the command line prints it without a traceback.

    Args:
        arguments: the message for the user comes first. ANSI color codes are removed from it.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(
            *(strip_ansi(item) if isinstance(item, str) else item for item in arguments)
        )


class InputError(RayEmbedError):
    """The input is wrong. The message names the option or file, its value, and the fix."""

    exit_code = 2


class RunError(RayEmbedError):
    """The run failed while it was working; finished shards are kept.

    Args:
        message: what happened, and how to fix it.
        can_resume: whether the same command can resume the run.
    """

    def __init__(self, message: str, can_resume: bool = True) -> None:
        super().__init__(message, can_resume)
        self.can_resume = can_resume

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(RunError):
    """A file cannot be read or written: the disk is full, access is denied, or storage fails."""


class DamagedError(RunError):
    """A part is damaged; extracting its shard again repairs it.

    Args:
        message: which part is damaged, and how.
        number: the number of its shard.
    """

    exit_code = 2

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, can_resume=False)
        self.number = number
        # Pickle calls the class with these.
        self.args = (self.args[0], number)

    def __str__(self) -> str:
        return f"{self.args[0]}; `ray-embed run` with the same options extracts it again"


def get_first_line(error: Exception) -> str:
    """Return the first line of another library's error, to quote it in a message."""
    return strip_ansi(str(error)).strip().partition("\n")[0][:200]


def strip_ansi(text: str) -> str:
    """Return the text without ANSI color codes."""
    return _ANSI_CODE.sub("", text)
