# SPDX-License-Identifier: Apache-2.0
"""A process that looks after the one that works: so that there is always a last word.

Where Ray loses the process that schedules work on this machine, it ends the program at once,
without an exception. And Ray has its own ideas of signals. So commands that work long do it in a
child of the process that the user started.
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

_SAID = b"."


def guarded(work: Callable[[], NoReturn], abandoned: Callable[[str], int]) -> NoReturn:
    """Run `work` in a child, and end as it ends.

    The first SIGINT or SIGTERM interrupts the child, the second one kills it. Where this process is
    killed, the child is too. What the child has started ends with it, in whatever way it does: some
    of Ray's processes would look for theirs only after a while.

    Args:
        work: ends with SystemExit, once it has said what there was to say.
        abandoned: says it where the child could not, given how it ended; gives the exit code.
    """
    alive = os.pipe()
    said = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(alive[1])
        os.close(said[0])
        _be_child(work, alive[0], said[1])
    os.close(alive[0])
    os.close(said[1])
    interrupts = 0

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        # It may have ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT if interrupts == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    # Until it is waited for, its number is that of its group and of no other.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.read(said[0], 1) == _SAID:
        sys.exit(os.waitstatus_to_exitcode(status))
    if interrupts:
        raise KeyboardInterrupt
    code = os.waitstatus_to_exitcode(status)
    how = f"with exit {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    sys.exit(abandoned(how))


def _be_child(work: Callable[[], NoReturn], alive: int, said: int) -> NoReturn:
    # The terminal sends Ctrl-C to the group of who was started, which passes it on once.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait_for_the_end() -> None:
        os.read(alive, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    code = 1
    try:
        work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(said, _SAID)
    # What called `guarded` goes on in the other process only.
    os._exit(code)
