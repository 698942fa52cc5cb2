# SPDX-License-Identifier: Apache-2.0
"""What the user sees while a run goes on, all of it on stderr."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from ray_embed.errors import without_ansi

_SECONDS_A_LINE, _LOOK_SECONDS = 60.0, 0.5
# Of less nobody can tell how fast it is.
_SECONDS_TO_TELL = 3.0


def say(text: str) -> None:
    """Print a line for the user, without breaking a progress bar."""
    # Warnings quote Keras, too.
    tqdm.write(without_ansi(text), file=sys.stderr)


class Reminder:
    """Says that something is waited for: after a while, and again every minute.

    Args:
        patience: seconds before it is said for the first time.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self._began = time.monotonic()
        self._patience = patience
        self._said: float | None = None

    def is_due(self, again: bool = True) -> bool:
        """Whether it is time to say it, for the first time or `again`."""
        if self._said is None:
            return time.monotonic() - self._began >= self._patience
        return again and time.monotonic() - self._said >= _SECONDS_A_LINE

    def say(self, text: str) -> None:
        """Say it."""
        self._said = time.monotonic()
        say(text)


class Progress:
    """A progress bar on a terminal; elsewhere one plain line a minute, whether or not it goes on.

    Args:
        total: the number of records; None where it is not known yet.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar = tqdm(
            total=total,
            unit="img",
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._done = self._computed = self._before_first = 0
        self._first: float | None = None
        self._began = self._last = self._said = time.monotonic()
        self._saying, self._ended = threading.Lock(), threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self._bar.disable:
            self._watching.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar.disable:
            self._ended.set()
            self._watching.join()
        self._bar.close()

    @property
    def rate(self) -> float:
        """Images a second, since the first shard was done where there were more; 0 for none."""
        if self._first is not None and self._last > self._first:
            return (self._computed - self._before_first) / (self._last - self._first)
        return self._computed / max(self._last - self._began, 1e-9)

    @property
    def measured(self) -> float:
        """The rate, where it was measured for long enough to tell anything; else 0."""
        began = self._began if self._first is None else self._first
        return self.rate if self._last - began >= _SECONDS_TO_TELL else 0

    def skip(self, records: int) -> None:
        """Count records that were done before."""
        self._done += records
        if not self._bar.disable:
            # Not counted as this run's speed.
            self._bar.initial += records
            self._bar.update(records)

    def advance(self, records: int) -> None:
        """Count records that are done now."""
        now = time.monotonic()
        self._done += records
        self._computed += records
        self._last = now
        if self._first is None:
            self._first, self._before_first = now, records
        self._bar.update(records)
        if self._bar.disable:
            self._say_if_due()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._say_if_due()

    def _say_if_due(self) -> None:
        with self._saying:
            now = time.monotonic()
            if now - self._said >= _SECONDS_A_LINE:
                self._said = now
                say(self._line())

    def _line(self) -> str:
        if self._total is None:
            return f"{self._done} images, {self.rate:.0f} img/s"
        left = (self._total - self._done) / self.rate if self.rate else None
        ending = "" if left is None else f", {tqdm.format_interval(left)} left"
        return f"{self._done} of {self._total} images, {self.rate:.0f} img/s{ending}"
