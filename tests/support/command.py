# SPDX-License-Identifier: Apache-2.0
"""The command line, as tests call it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]
