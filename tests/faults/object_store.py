# SPDX-License-Identifier: Apache-2.0
"""A run with source, model and run folder on an object store that fails now and then.

    python tests/faults/object_store.py --records 1000 --share 0.05 --delay 0.02

The same run is made on the local disk, on the store left alone, and on the store behind a proxy
that makes a share of the requests fail (an answer of 500, a connection reset, an answer cut off)
and all of them wait. Exit 0: the three run folders hold the same bytes; 1: not so.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pyarrow import fs
from support import object_store
from support.object_store import Faults
from support.pictures import make_folder
from support.sample_runs import read_results, save_encoder


def run(work: Path, root: str, out: str) -> float:
    words = ["run", "--source", f"{root}/data", "--model", f"{root}/encoder.keras", "--out", out]
    words += ["--engine", "tensorflow", "--shard-size", "64", "--actors", "2"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ray_embed", *words, "--cpus-per-actor", "1"],
        cwd=work,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"exit {done.returncode}: {done.stderr}")
    print(f"{out}: {done.stdout.splitlines()[0]}", flush=True)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds a request")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    faults = Faults()
    with (
        tempfile.TemporaryDirectory() as temporary,
        object_store.server() as address,
        object_store.proxy(address, faults, given.seed) as proxied,
    ):
        work = Path(temporary)
        os.environ.update(object_store.environment(proxied))
        data = make_folder(work / "data", {"a": given.records // 2, "b": given.records // 2})
        (data / "a" / "0005.png").write_bytes(b"no picture")
        save_encoder(work / "encoder.keras")
        object_store.make_bucket("bucket")
        object_store.upload(data, "s3://bucket/data")
        object_store.upload(work / "encoder.keras", "s3://bucket/encoder.keras")
        run(work, ".", "local")
        expected = read_results(work / "local")
        wrong = 0
        for name, share, delay in (("calm", 0.0, 0.0), ("faulty", given.share, given.delay)):
            faults.done.clear()
            faults.share, faults.delay = share, delay
            took = run(work, "s3://bucket", f"s3://bucket/{name}")
            faults.share = faults.delay = 0
            told = ", ".join(f"{count} {what}" for what, count in faults.done.most_common())
            fs.copy_files(f"s3://bucket/{name}", str(work / name), chunk_size=1 << 20)
            found = read_results(work / name)
            differing = sum(expected.get(name) != found.get(name) for name in {*expected, *found})
            wrong += differing
            print(
                f"  {took:.0f} s, {told}; {len(found)} files, {differing} differ from the local run"
            )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
