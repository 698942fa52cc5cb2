# SPDX-License-Identifier: Apache-2.0
"""Messages and the progress bar that users see during a run, all on stderr."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from tqdm import tqdm

from ray_embed.errors import strip_ansi

_LINE_SECONDS, _POLL_SECONDS = 60.0, 0.5
# A rate measured over less time is not reliable.
_MIN_RATE_SECONDS = 3.0


Say = Callable[[str], None]


def say(text: str) -> None:
    """Print a line for the user, without breaking a progress bar."""
    # Warnings may quote Keras, which uses color codes.
    tqdm.write(strip_ansi(text), file=sys.stderr)


@contextlib.contextmanager
def say_after(seconds: float, text: str) -> Iterator[None]:
    """Print a line for the user if the ``with`` block takes longer than some seconds."""
    timer = threading.Timer(seconds, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Reminder:
    """Decides when to print that the run waits for something: after a while, then every minute.

    Args:
        patience: seconds to wait before the first message.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self._began = time.monotonic()
        self._patience = patience
        self._last_said: float | None = None

    def is_due(self, again: bool = True) -> bool:
        """Return whether it is time for a message.

        Args:
            again: whether to repeat the message after the first time.
        """
        if self._last_said is None:
            return time.monotonic() - self._began >= self._patience
        return again and time.monotonic() - self._last_said >= _LINE_SECONDS

    def say(self, text: str) -> None:
        """Print the message."""
        self._last_said = time.monotonic()
        say(text)


class Progress:
    """Shows the progress: a bar on a terminal, and otherwise one plain line per minute.

    Args:
        total: the number of records, or None if it is unknown.
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
        self._done = self._computed = self._first_records = 0
        self._first_advance: float | None = None
        self._began = self._last_advance = self._last_line = time.monotonic()
        self._line_lock, self._ended = threading.Lock(), threading.Event()
        self._line_thread = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Self:
        if self._bar.disable:
            self._line_thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar.disable:
            self._ended.set()
            self._line_thread.join()
        self._bar.close()

    @property
    def rate(self) -> float:
        """Images per second, excluding the first shard if there are more; 0 before any is done."""
        if self._first_advance is not None and self._last_advance > self._first_advance:
            seconds = self._last_advance - self._first_advance
            return (self._computed - self._first_records) / seconds
        return self._computed / max(self._last_advance - self._began, 1e-9)

    @property
    def reliable_rate(self) -> float:
        """The rate if it was measured for long enough, and 0 otherwise."""
        began = self._began if self._first_advance is None else self._first_advance
        return self.rate if self._last_advance - began >= _MIN_RATE_SECONDS else 0

    def skip(self, records: int) -> None:
        """Count records that an earlier run completed."""
        self._done += records
        if not self._bar.disable:
            # `initial` keeps them out of the speed that the bar shows.
            self._bar.initial += records
            self._bar.update(records)

    def advance(self, records: int) -> None:
        """Count records that were just completed."""
        now = time.monotonic()
        self._done += records
        self._computed += records
        self._last_advance = now
        if self._first_advance is None:
            self._first_advance, self._first_records = now, records
        self._bar.update(records)
        if self._bar.disable:
            self._print_line_if_due()

    def _print_lines(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._print_line_if_due()

    def _print_line_if_due(self) -> None:
        with self._line_lock:
            now = time.monotonic()
            if now - self._last_line >= _LINE_SECONDS:
                self._last_line = now
                say(self._format_line())

    def _format_line(self) -> str:
        if self._total is None:
            return f"{self._done} images, {self.rate:.0f} img/s"
        seconds = (self._total - self._done) / self.rate if self.rate else None
        ending = "" if seconds is None else f", {tqdm.format_interval(seconds)} left"
        return f"{self._done} of {self._total} images, {self.rate:.0f} img/s{ending}"
