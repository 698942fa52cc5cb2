# SPDX-License-Identifier: Apache-2.0
"""Per-actor measures, exported through Ray's measures system."""

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import ray
from ray.util import metrics

_Activity = Literal["computing", "waiting"]
_Item = TypeVar("_Item")

# Ray adds the prefix `ray_` and the suffix `_total`.
_COUNTERS = {
    "images": "Images embedded.",
    "rejects": "Records rejected.",
    "read_bytes": "Bytes read: file sizes for image files, memory sizes for arrays.",
    "computing_seconds": "Seconds the encoder spent computing.",
    "waiting_seconds": "Seconds the encoder was idle, waiting for images.",
}


class ActorMetrics:
    """Measures the work of this actor and reports it after every shard.

    Several threads can compute and wait at the same time. Time counts as computing if any thread
    computes, otherwise as waiting if any thread waits for images.
    """

    def __init__(self) -> None:
        tags = {"actor": _actor_name()}
        self._counters = {
            name: metrics.Counter(f"embed_{name}", about, tuple(tags)).set_default_tags(tags)
            for name, about in _COUNTERS.items()
        }
        self._lock = threading.Lock()
        self._doing = Counter[_Activity]()
        self._seconds: defaultdict[_Activity, float] = defaultdict(float)
        self._since = 0.0

    @contextlib.contextmanager
    def measure(self, what: _Activity) -> Iterator[None]:
        """Count the time of a block."""
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def measure_waiting(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items, counting the time spent waiting for each."""
        iterator = iter(items)
        end = object()
        while True:
            with self.measure("waiting"):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def report_read(self, size: int) -> None:
        """Report the number of image bytes read."""
        self._report({"read_bytes": size})

    def report_shard(self, images: int, rejects: int) -> None:
        """Report a finished shard and the time since the previous one."""
        with self._lock:
            self._count_time()
            seconds = {f"{what}_seconds": value for what, value in self._seconds.items()}
            self._seconds.clear()
        self._report({**seconds, "rejects": rejects, "images": images})

    def _report(self, counts: dict[str, float]) -> None:
        for name, value in counts.items():
            # Ray counters reject zero.
            if value:
                self._counters[name].inc(value)

    def _change(self, what: _Activity, by: int) -> None:
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
    # Without Ray, the measures are not exported.
    name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
    return name or "none"
