# SPDX-License-Identifier: Apache-2.0
"""Sort any number of names while holding few: sorted runs go to files, which are then merged."""

import contextlib
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

_NAMES_A_LINE = 1024


def sort_names(names: Iterable[str], held: int) -> Iterator[str]:
    """Yield the names in code-point order, holding little more than `held` of them in memory.

    Args:
        names: the names, in any order; they may hold bytes that are no text (PEP 383).
        held: the number of names sorted at once. The rest goes to temporary files, one for each
            `held` names, which stay open until the last name is yielded.
    """
    remaining = iter(names)
    with contextlib.ExitStack() as files:
        runs: list[Iterator[str]] = []
        while run := sorted(islice(remaining, held)):
            if len(run) < held:
                runs.append(iter(run))
                break
            file = files.enter_context(tempfile.TemporaryFile("w+", encoding="ascii"))
            _write_run(file, run)
            runs.append(_read_run(file))
        # Otherwise it would stay in memory while the merged names are yielded.
        del run
        yield from heapq.merge(*runs)


def _write_run(file: TextIO, names: list[str]) -> None:
    # JSON escapes newlines, and what is no text.
    for start in range(0, len(names), _NAMES_A_LINE):
        file.write(json.dumps(names[start : start + _NAMES_A_LINE]) + "\n")
    file.seek(0)


def _read_run(file: TextIO) -> Iterator[str]:
    for line in file:
        yield from json.loads(line)
