# SPDX-License-Identifier: Apache-2.0
"""Metrics of an actor's work, among Ray's own, for those who watch a cluster."""

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import ray
from ray.util import metrics

_Doing = Literal["computing", "waiting"]
_Item = TypeVar("_Item")

# Ray puts `ray_` before the names, and `_total` behind them.
_COUNTED = {
    "images": "Images embedded.",
    "rejects": "Records rejected.",
    "read_bytes": "Bytes of the images read: of files as they are stored, of others unpacked.",
    "computing_seconds": "Seconds in which the encoder computed.",
    "waiting_seconds": "Seconds in which the encoder had nothing to compute, waiting for images.",
}


class Meter:
    """Counts the work of the actor in this process, and reports it after every shard.

    Several threads may compute and wait at once. A second counts as computing if any of them
    computes, else as waiting if any of them waits for images.
    """

    def __init__(self) -> None:
        tags = {"actor": _actor_name()}
        self._counters = {
            name: metrics.Counter(f"embed_{name}", about, tuple(tags)).set_default_tags(tags)
            for name, about in _COUNTED.items()
        }
        self._lock = threading.Lock()
        self._doing = Counter[_Doing]()
        self._seconds: defaultdict[_Doing, float] = defaultdict(float)
        self._since = 0.0

    @contextlib.contextmanager
    def measure(self, what: _Doing) -> Iterator[None]:
        """Count the time of a block."""
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def measure_waiting(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items, and count the time until each is there."""
        iterator = iter(items)
        end = object()
        while True:
            with self.measure("waiting"):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def report_read(self, size: int) -> None:
        """Report bytes of images."""
        self._report({"read_bytes": size})

    def report_shard(self, images: int, rejects: int) -> None:
        """Report a shard that is done, and the time counted since the last one."""
        with self._lock:
            self._count_time()
            seconds = {f"{what}_seconds": value for what, value in self._seconds.items()}
            self._seconds.clear()
        self._report({**seconds, "rejects": rejects, "images": images})

    def _report(self, counts: dict[str, float]) -> None:
        for name, value in counts.items():
            # Ray refuses zero.
            if value:
                self._counters[name].inc(value)

    def _change(self, what: _Doing, by: int) -> None:
        with self._lock:
            self._count_time()
            self._doing[what] += by

    def _count_time(self) -> None:
        now = time.monotonic()
        if self._doing["computing"]:
            self._seconds["computing"] += now - self._since
        elif self._doing["waiting"]:
            self._seconds["waiting"] += now - self._since
        self._since = now


def _actor_name() -> str:
    # Without Ray nobody reads the numbers.
    name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
    return name or "none"
