# SPDX-License-Identifier: Apache-2.0
"""Run a command in a child process, so that the user always sees a final message.

Ray terminates the whole process without an exception if the raylet dies, and it installs its own
signal handlers. Long-running commands therefore run in a child of the process that the user
started.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_REPORTED = b"."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def supervise(work: Callable[[], NoReturn], report_loss: Callable[[str], int]) -> NoReturn:
    """Run `work` in a child process and exit with its exit code.

    The first SIGINT or SIGTERM interrupts the child, the second one kills it. If this process is
    killed, the child is killed too. When the child ends, its process group is killed, because some
    of Ray's processes would otherwise linger.

    Args:
        work: function that reports its result to the user and raises SystemExit.
        report_loss: called with a description such as "by SIGKILL" if the child died without a
            message; reports it to the user and returns the exit code.
    """
    alive_reader, alive_writer = os.pipe()
    report_reader, report_writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
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
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    else:
        # Python has `waitid` on macOS from 3.13 on.
        _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
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
