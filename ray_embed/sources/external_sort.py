# SPDX-License-Identifier: Apache-2.0
"""Sorts any number of names while holding few: sorted runs go to files, which are then merged."""

import contextlib
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

_A_LINE = 1024


def sort_names(names: Iterable[str], held: int) -> Iterator[str]:
    """Give the names in code-point order, holding little more than `held` of them in memory.

    Args:
        names: in any order; they may hold bytes that are no text (PEP 383).
        held: how many are sorted at once. What is more goes to temporary files, a file for each
            `held` names, which stay open until all is given.
    """
    waiting = iter(names)
    with contextlib.ExitStack() as files:
        runs: list[Iterator[str]] = []
        while run := sorted(islice(waiting, held)):
            if len(run) < held:
                runs.append(iter(run))
                break
            file = files.enter_context(tempfile.TemporaryFile("w+", encoding="ascii"))
            _write(file, run)
            runs.append(_read(file))
        # Or it would stay while the merged names are given.
        del run
        yield from heapq.merge(*runs)


def _write(file: TextIO, names: list[str]) -> None:
    # JSON escapes newlines, and what is no text.
    for start in range(0, len(names), _A_LINE):
        file.write(json.dumps(names[start : start + _A_LINE]) + "\n")
    file.seek(0)


def _read(file: TextIO) -> Iterator[str]:
    for line in file:
        yield from json.loads(line)
