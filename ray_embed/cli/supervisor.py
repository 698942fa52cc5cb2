# SPDX-License-Identifier: Apache-2.0
"""Run a command in a child process, so that the user always sees a final message.

Ray terminates the whole process without an exception if the raylet dies, and it installs its own
signal handlers. Long-running commands therefore run in a child of the process that the user
started. What the child leaves running is killed, so it need not wait until Ray has ended.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

_REPORTED = b"."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Linux gives the orphans among the descendants of a process to it that has set this (prctl.h).
_PR_SET_CHILD_SUBREAPER = 36
# Processes that a kill does not end within this time hang in the system.
_KILL_SECONDS, _POLL_SECONDS = 5.0, 0.01


def supervise(work: Callable[[], NoReturn], report_loss: Callable[[str], int]) -> NoReturn:
    """Run `work` in a child process and exit with its exit code.

    The first SIGINT or SIGTERM interrupts the child, the second one kills it. If this process is
    killed, the child is killed too. When the child ends, its process group is killed, and on Linux
    all of its descendants, because some of Ray's processes would otherwise linger.

    Args:
        work: function that reports its result to the user and raises SystemExit.
        report_loss: called with a description such as "by SIGKILL" if the child died without a
            message; reports it to the user and returns the exit code.
    """
    alive_reader, alive_writer = os.pipe()
    report_reader, report_writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    _adopt_orphans()
    child = os.fork()
    if child == 0:
        os.close(alive_writer)
        os.close(report_reader)
        _run_child(work, alive_reader, report_writer)
    os.close(alive_reader)
    os.close(report_writer)
    interrupts = 0

    def forward_signal(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        # The child may have ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT if interrupts == 1 else signal.SIGKILL)

    for number in _SIGNALS:
        signal.signal(number, forward_signal)
    status = None
    if hasattr(os, "waitid"):
        # As long as the child is not reaped, no other process group can get its number.
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) and ended.si_pid != child:
            os.waitpid(ended.si_pid, 0)
    else:
        # Python has `waitid` on macOS from 3.13 on.
        _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    _kill_orphans(child)
    if status is None:
        _, status = os.waitpid(child, 0)
    if os.read(report_reader, 1) == _REPORTED:
        # A second signal must not change the exit code while Python ends.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(os.waitstatus_to_exitcode(status))
    if interrupts:
        raise KeyboardInterrupt
    code = os.waitstatus_to_exitcode(status)
    ending = f"with exit {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    sys.exit(report_loss(ending))


def _adopt_orphans() -> None:
    """Become the parent of all orphans among the descendants, where the system offers that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_orphans(child: int) -> None:
    """Kill the adopted orphans, and their children, which are adopted in turn.

    Args:
        child: the child of this process, which has ended.
    """
    end = time.monotonic() + _KILL_SECONDS
    while (orphans := [pid for pid in _list_children() if pid != child]) and time.monotonic() < end:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_POLL_SECONDS)


def _list_children() -> Iterator[int]:
    """Yield the children of this process, as far as the system tells."""
    with contextlib.suppress(OSError):
        yield from map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _run_child(work: Callable[[], NoReturn], alive_reader: int, report_writer: int) -> NoReturn:
    # The terminal sends Ctrl-C to the parent's group; the parent passes it on once.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_with_parent() -> None:
        os.read(alive_reader, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    code = 1
    try:
        work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(report_writer, _REPORTED)
    # The code that called `supervise` must continue in the parent only.
    os._exit(code)
