# SPDX-License-Identifier: Apache-2.0
"""The exceptions of ray_embed, with their exit codes."""

import re

# Keras puts color codes into its messages, even where no terminal shows them.
_ANSI_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class RayEmbedError(Exception):
    """Base class of all ray_embed errors. The command line prints them without a traceback.

    Args:
        arguments: the message, with ANSI codes removed, and further picklable values.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(
            *(strip_ansi(item) if isinstance(item, str) else item for item in arguments)
        )


class InputError(RayEmbedError):
    """Invalid input. The message names the option or file, its value, and the fix."""

    exit_code = 2


class RunError(RayEmbedError):
    """The run failed. Finished shards are kept.

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
    """A file cannot be read or written: disk full, access denied, or a storage failure."""


class DamagedError(RunError):
    """A part is damaged. Extracting its shard again repairs it.

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
        return f"{self.args[0]}; run `ray-embed run` with the same options to extract it again"


def get_first_line(error: Exception) -> str:
    """Return the first line of an error message of another library."""
    return strip_ansi(str(error)).strip().partition("\n")[0][:200]


def strip_ansi(text: str) -> str:
    """Return the text without ANSI color codes."""
    return _ANSI_CODE.sub("", text)
