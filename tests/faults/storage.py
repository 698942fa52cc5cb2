# SPDX-License-Identifier: Apache-2.0
"""Lets each single operation on the run folder fail, one after the other.

    python tests/faults/storage.py              every operation
    python tests/faults/storage.py --every 10   each tenth

A small run (rejects, thumbnails, the projector's files) is made once undisturbed, which counts the
system calls on files below the run folder: opening, reading, writing, renaming, listing, looking at
them. Then, for each of them, the same run is made anew with that call failing; and three times more
with the disk full from that call on, read-only from then on, and without a free file handle. It
must succeed all the same, or end with one of our errors, everything that lies under its final name
being right; and the same run again, with nothing failing, must complete it. Files in the end are,
byte for byte, those of the undisturbed run.

It is one process, without Ray, whose actors and calls are stood in for by plain ones. The failing
library beside this file is compiled with the system's C compiler and preloaded.

Exit 0: all were right; 1: not so; 77: there is no C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
# As the library numbers them.
MODES = ("once", "full", "read-only", "handles")
sys.path.insert(0, str(HERE.parent))


def preload(folder: Path) -> None:
    """Compile the library, and start this program anew with it."""
    library = folder / "failing.so"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        print("no C compiler, so that nothing was tried")
        sys.exit(77)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, HERE / "failing.c", "-ldl"], check=True
    )
    environment = {**os.environ, "LD_PRELOAD": str(library), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment)
    sys.exit(done.returncode)


class Reference:
    """What a call gave, at once."""

    def __init__(self, call: Any) -> None:
        self._value = self._error = None
        try:
            self._value = call()
        except Exception as error:
            self._error = error

    def get(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class Plain:
    """An actor that is an object of this process."""

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._extractor, name)
        return SimpleNamespace(remote=lambda *arguments: Reference(lambda: method(*arguments)))


class PlainSession:
    """A session without Ray, with one extractor and an encoder that was built before."""

    def __init__(self) -> None:
        from ray_embed.extraction.worker import Extractor
        from ray_embed.runtime.resources import Resources

        self.resources = Resources(1, 0.0)
        self.folder = str(Path.cwd())
        self.extractor = Extractor(1, self.folder)
        self.encoder: Any = None
        worker = SimpleWorker(Plain(self.extractor))
        self.pool = SimpleNamespace(fill=lambda useful: [worker], dismiss_waiting=lambda: None)

    def list_other_actors(self) -> list[Any]:
        return []

    def call(self, function: Any, *arguments: Any) -> Any:
        if function.__name__ != "build":
            return lambda: function(*arguments)
        self.encoder = self.encoder or function(*arguments)
        return lambda: self.encoder


class SimpleWorker:
    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.node = None


def stand_in() -> None:
    """Let the schedule work without Ray."""
    from ray_embed.extraction import scheduler

    scheduler.ray = SimpleNamespace(wait=lambda calls, **_: (calls[:1], calls[1:]))
    scheduler.get_result = lambda reference: reference.get()
    scheduler._POLL_SECONDS = 0


def whole(config: Any, session: Any) -> None:
    """Do a run."""
    from ray_embed import pipeline
    from ray_embed.errors import RayEmbedError
    from ray_embed.extraction.prepare import RunRequest, prepare, write_run_folder
    from ray_embed.runs.workspace import open_target
    from ray_embed.sources.open import open_sources
    from ray_embed.storage.filesystem import Folder

    # As a new process does.
    session.extractor._opened = None
    sources = open_sources(config)
    with open_target(config) as target, tempfile.TemporaryDirectory() as folder:
        scratch = Folder.open(folder)
        requests = [RunRequest(config, target)]
        (prepared,) = prepare(requests, sources, {}, scratch, session)
        if isinstance(prepared, RayEmbedError):
            raise prepared
        write_run_folder(prepared, scratch)
        results: dict[int, Any] = {}
        pipeline._extract_and_reduce(config, {0: prepared}, [], results, session, True)
        if isinstance(results[0], RayEmbedError):
            raise results[0]


def tried(
    number: int, mode: int, config: Any, session: Any, calm: dict[str, bytes], library: Any
) -> str:
    """Let operations fail; gives what came of it, which begins with WRONG where it is."""
    from support.sample_runs import read_results

    from ray_embed.errors import RayEmbedError

    run = Path(config.out)
    shutil.rmtree(run, ignore_errors=True)
    library.failing_arm(str(run).encode(), number, mode)
    outcome = "done all the same"
    try:
        whole(config, session)
    except (RayEmbedError, OSError) as error:
        outcome = f"{type(error).__name__}: {error}".replace(str(run), "RUN")
    except Exception:
        outcome = f"WRONG: {traceback.format_exc()}"
    library.failing_disarm()
    what = library.failing_failed().decode() or "(not reached)"
    for name, content in read_results(run).items() if run.exists() else ():
        if content != calm.get(name):
            outcome = f"WRONG: {name} is not what it must be, after {outcome}"
    try:
        whole(config, session)
    except Exception:
        outcome = f"WRONG: it does not go on, after {outcome}: {traceback.format_exc()}"
    else:
        if read_results(run) != calm:
            outcome = f"WRONG: other files in the end, after {outcome}"
        if (run / ".tmp").exists():
            outcome = f"WRONG: .tmp stays, after {outcome}"
    return f"{what}: {outcome}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth operation")
    parser.add_argument("--all", action="store_true", help="print each outcome")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storage-") as temporary:
        folder = Path(temporary)
        if "failing.so" not in os.environ.get("LD_PRELOAD", ""):
            preload(folder)
        from support.sample_runs import config, read_results, save_encoder, write_listing

        stand_in()
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.failing_failed.restype = ctypes.c_char_p
        library.failing_count.restype = ctypes.c_long
        library.failing_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        # First of all, for TensorFlow's threads can be set only before its first use.
        session = PlainSession()
        listing = write_listing(folder / "data", list("aabbabab"), {5})
        model = save_encoder(folder / "encoder.keras")
        run = config({"valid": listing}, model, folder / "run")
        library.failing_arm(str(folder / "run").encode(), 0, 0)
        whole(run, session)
        operations = library.failing_count()
        library.failing_disarm()
        calm = read_results(folder / "run")
        print(f"{operations} operations on {len(calm)} files and more", flush=True)
        outcomes: Counter[str] = Counter()
        wrong = 0
        for mode, name in enumerate(MODES):
            for number in range(1, operations + 1, given.every):
                said = tried(number, mode, run, session, calm, library)
                is_wrong = ": WRONG" in said
                wrong += is_wrong
                what, _, outcome = said.partition(": ")
                outcomes[f"{name:9}  {what.split()[0]}: {outcome.split(':')[0]}"] += 1
                if is_wrong or given.all:
                    print(f"{name} {number:4} {said}", flush=True)
    print("\nhow, and what failed first: what came of it: how often")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5}  {outcome}")
    print(
        f"{outcomes.total()} times operations were made to fail, in four ways: "
        + (f"{wrong} WRONG" if wrong else "none left anything wrong, and all went on to the end")
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
