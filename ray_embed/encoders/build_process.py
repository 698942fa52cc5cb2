# SPDX-License-Identifier: Apache-2.0
"""Build encoders in a separate process while Ray starts.

Ray's startup mostly waits, while importing TensorFlow and building the encoder mostly compute.
Running one after the other would take twice as long.
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
from typing import IO

from ray_embed.core.arrays import Array
from ray_embed.encoders.spec import Encoder, EncoderSpec
from ray_embed.errors import RayEmbedError, RunError

Weights = tuple[Array, ...]
Build = Callable[[EncoderSpec, Weights | None], Callable[[], Encoder]]

# The child searches modules on the import path of this process, without its current folder.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ray_embed.encoders.build_process import serve; serve(int(sys.argv[2]), sys.argv[3])"
)


@contextlib.contextmanager
def start_build_process(threads: int, folder: str) -> Iterator[Build]:
    """Start a process that builds encoders, and yield a function that sends it a request.

    The function immediately returns a function that waits for the encoder, and that raises the
    errors of :func:`ray_embed.encoders.build.build`, or RunError if the process dies.

    Args:
        threads: the number of threads for computing.
        folder: the folder that the command was started in; the user's modules are imported from it.
    """
    with tempfile.TemporaryFile() as output, ThreadPoolExecutor(1) as executor:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own arguments
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(threads), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )

        def build(spec: EncoderSpec, saved_weights: Weights | None) -> Callable[[], Encoder]:
            return executor.submit(_request, process, output, spec, saved_weights).result

        try:
            yield build
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None  # noqa: S101 - both are pipes
                with contextlib.suppress(OSError):
                    pipe.close()


def _request(
    process: "subprocess.Popen[bytes]",
    output: IO[bytes],
    spec: EncoderSpec,
    saved_weights: Weights | None,
) -> Encoder:
    """Send the request, and wait for the encoder.

    Args:
        process: the build process.
        output: the file that its printed output is written to.
        spec: the requested encoder.
        saved_weights: the weights that an earlier start of the run saved.
    """
    request, answer = process.stdin, process.stdout
    assert request is not None and answer is not None  # noqa: S101 - both are pipes
    try:
        pickle.dump((spec, saved_weights), request)
        request.flush()
        result = pickle.load(answer)  # noqa: S301 - from our own process
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        output.seek(0)
        last = output.read().decode("utf-8", "replace").strip()[-2000:]
        raise RunError(
            f"the process that builds the encoder died (exit {process.wait()}); its last output:\n"
            f"{last or '(none)'}"
        ) from error
    if isinstance(result, Exception):
        raise result
    encoder: Encoder = result
    return encoder


def serve(threads: int, folder: str) -> None:
    """Run in the build process: answer requests on the standard output until the input ends."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Redirect what the user's code and libraries print, so that it does not mix with the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Leave the GPUs to the actors.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with answer:
        while (result := _answer_request(threads, folder)) is not None:
            pickle.dump(result, answer, pickle.HIGHEST_PROTOCOL)
            answer.flush()


def _answer_request(threads: int, folder: str) -> Encoder | Exception | None:
    """Return the encoder of the next request or an error, or None if there are no more requests."""
    try:
        return _build_requested(threads, folder)
    except EOFError:
        # The other process closed the pipe.
        return None
    except RayEmbedError as error:
        return error
    except Exception:
        return RunError(f"an error while building the encoder:\n{traceback.format_exc()}")


def _build_requested(threads: int, folder: str) -> Encoder:
    from ray_embed.encoders.tensorflow_setup import start_tensorflow

    start_tensorflow(threads, folder)
    from ray_embed.encoders.build import build

    spec, saved_weights = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own process
    return build(spec, threads, saved_weights)
