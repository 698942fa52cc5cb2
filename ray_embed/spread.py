# SPDX-License-Identifier: Apache-2.0
"""Pieces of the merge, done by actors on other machines."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ray_embed.merging import Merge, Merged, Piece, merge_piece
from ray_embed.workers import ActorDiedError, result

# One is read while the other one is written.
_PIECES_AN_ACTOR = 2


def by_others(others: list[Any], merge: Merge, pieces: Iterable[Piece]) -> Iterator[Merged]:
    """Have extractors do pieces; gives what came of them in order.

    What an actor that is gone was to do is done here.

    Args:
        others: the extractors' actors.
        merge: what the pieces have in common.
        pieces: which; a few for each actor are taken ahead.

    Raises:
        DamagedError, StorageError: as :func:`ray_embed.merging.merge_piece` raises.
        RunError: Ray has gone.
    """
    waiting: deque[tuple[Piece, Any]] = deque()
    for piece, other in zip(pieces, itertools.cycle(others), strict=False):
        waiting.append((piece, other.merge_piece.remote(merge, piece)))
        if len(waiting) > _PIECES_AN_ACTOR * len(others):
            yield _taken(merge, *waiting.popleft())
    while waiting:
        yield _taken(merge, *waiting.popleft())


def _taken(merge: Merge, piece: Piece, reference: Any) -> Merged:
    try:
        merged: Merged = result(reference)
    except ActorDiedError:
        merged = merge_piece(merge, piece)
    return merged
