# SPDX-License-Identifier: Apache-2.0
"""Builds the encoder in a process of its own, beside the start of Ray.

Starting Ray is mostly waiting, importing TensorFlow and building mostly computing; one after the
other they take twice as long.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np

from ray_embed.encoders.spec import Encoder, EncoderSpec
from ray_embed.errors import RayEmbedError, RunError

Weights = tuple[np.ndarray[Any, Any], ...]
Build = Callable[[EncoderSpec, Weights | None], Callable[[], Encoder]]

# The import path of this process, and not the folder it is in, is where modules are looked for.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ray_embed.encoders.build_process import serve; serve(int(sys.argv[2]), sys.argv[3])"
)


@contextlib.contextmanager
def builder(threads: int, folder: str) -> Iterator[Build]:
    """Start a process that builds an encoder; gives the function that asks it for one.

    That function, called once, returns at once what waits for the encoder, and raises as
    :func:`ray_embed.encoders.build.build` does, or RunError where the process dies.

    Args:
        threads: for computing.
        folder: where the command was started; the user's modules are imported from it.
    """
    with tempfile.TemporaryFile() as said, ThreadPoolExecutor(1) as waiting:
        process = subprocess.Popen(  # noqa: S603 - this very interpreter, with our own arguments
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(threads), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )

        def build(spec: EncoderSpec, kept: Weights | None) -> Callable[[], Encoder]:
            return waiting.submit(_ask, process, said, spec, kept).result

        try:
            yield build
        finally:
            process.kill()
            process.wait()


def _ask(
    process: "subprocess.Popen[bytes]", said: IO[bytes], spec: EncoderSpec, kept: Weights | None
) -> Encoder:
    question, answer = process.stdin, process.stdout
    assert question is not None and answer is not None  # noqa: S101 - both are pipes
    try:
        with question:
            pickle.dump((spec, kept), question)
        found = pickle.load(answer)  # noqa: S301 - of our own process
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip()[-2000:]
        raise RunError(
            f"the process that builds the encoder died (exit {process.wait()}); its last words:\n"
            f"{last or '(none)'}"
        ) from error
    finally:
        answer.close()
    if isinstance(found, Exception):
        raise found
    encoder: Encoder = found
    return encoder


def serve(threads: int, folder: str) -> None:
    """Be that process: answer one question, on the standard output, and end."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What else is printed, by the user's code or by libraries, is no answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # It has no use for a GPU that the actors need.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found: Encoder | Exception
    try:
        from ray_embed.encoders.tensorflow_setup import start_tensorflow

        start_tensorflow(threads, folder)
        from ray_embed.encoders.build import build

        spec, kept = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own process
        found = build(spec, threads, kept)
    except EOFError:
        # Nobody asks.
        return
    except RayEmbedError as error:
        found = error
    except Exception:
        found = RunError(f"an error while building the encoder:\n{traceback.format_exc()}")
    with answer:
        pickle.dump(found, answer, pickle.HIGHEST_PROTOCOL)
