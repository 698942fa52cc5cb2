# SPDX-License-Identifier: Apache-2.0
"""External merge sort of names with bounded memory."""

import contextlib
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

_NAMES_PER_LINE = 1024


def sort_names(names: Iterable[str], held: int) -> Iterator[str]:
    """Yield the names in code-point order, keeping at most about `held` of them in memory.

    Args:
        names: the names, in any order. They may contain undecodable bytes (surrogate escapes, PEP
            383).
        held: the number of names to sort in memory. Larger inputs are spilled to temporary files of
            `held` names each, which stay open until the last name is yielded.
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
        # Free the memory before the names are merged.
        del run
        yield from heapq.merge(*runs)


def _write_run(file: TextIO, names: list[str]) -> None:
    # JSON escapes newlines and surrogates.
    for start in range(0, len(names), _NAMES_PER_LINE):
        file.write(json.dumps(names[start : start + _NAMES_PER_LINE]) + "\n")
    file.seek(0)


def _read_run(file: TextIO) -> Iterator[str]:
    for line in file:
        yield from json.loads(line)
