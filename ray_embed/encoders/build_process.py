# SPDX-License-Identifier: Apache-2.0
"""Build encoders in a separate process while Ray starts.

Ray's startup mostly waits, while importing a framework and building the encoder mostly compute.
Running one after the other would take twice as long. The process starts as soon as the options are
known, and imports the framework while this process imports Ray. This module therefore imports next
to nothing.
"""

import contextlib
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ray_embed.errors import RayEmbedError, RunError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ray_embed.encoders.build import Builder
    from ray_embed.encoders.spec import Build, Encoder, EncoderSpec, Weights

    # The arguments of `Build`.
    Request = tuple[EncoderSpec, int, Weights | None]

# The child searches modules on the import path of this process, without its current folder.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ray_embed.encoders.build_process import serve; serve(*sys.argv[2:])"
)


@contextlib.contextmanager
def start_build_process(model: str) -> Iterator["Build"]:
    """Start a process that builds encoders, and yield a function that sends it a request.

    `model` is the ``--model`` of the first request; the process imports what that needs.

    The function immediately returns a function that waits for the encoder, and that raises the
    errors of :func:`ray_embed.encoders.build.build`, or RunError if the process dies. Requests are
    answered one after the other. User modules are imported from the current folder.
    """
    with tempfile.TemporaryFile() as output, contextlib.ExitStack() as stack:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own arguments
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(Path.cwd()), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )

        executors: list[Executor] = []

        def build(
            spec: "EncoderSpec", threads: int, saved_weights: "Weights | None"
        ) -> Callable[[], "Encoder"]:
            from concurrent.futures import ThreadPoolExecutor

            if not executors:
                executors.append(stack.enter_context(ThreadPoolExecutor(1)))
            request = (spec, threads, saved_weights)
            return executors[0].submit(_request, process, output, request).result

        try:
            yield build
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None  # noqa: S101 - both are pipes
                with contextlib.suppress(OSError):
                    pipe.close()


def _request(process: "subprocess.Popen[bytes]", output: IO[bytes], asked: "Request") -> "Encoder":
    """Send the request, and wait for the encoder.

    Args:
        process: the build process.
        output: the file that its printed output is written to.
        asked: the request.
    """
    request, answer = process.stdin, process.stdout
    assert request is not None and answer is not None  # noqa: S101 - both are pipes
    try:
        pickle.dump(asked, request)
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


def serve(folder: str, model: str) -> None:
    """Run in the build process: answer requests on the standard output until the input ends.

    Args:
        folder: the folder that the command was started in; the user's modules are imported from it.
        model: the model of the first request.
    """
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Redirect what the user's code and libraries print, so that it does not mix with the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Leave the GPUs to the actors.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    start = functools.cache(functools.partial(_start_builder, folder, model))
    with answer:
        while (result := _answer_request(start)) is not None:
            pickle.dump(result, answer, pickle.HIGHEST_PROTOCOL)
            answer.flush()
    # TensorFlow takes a second to take itself apart.
    os._exit(0)


def _answer_request(start: "Callable[[], Builder]") -> "Encoder | Exception | None":
    """Return the encoder of the next request or an error, or None if there are no more requests.

    Args:
        start: imports packages on its first call, and returns the builder of this process.
    """
    try:
        return _build_requested(start())
    except EOFError:
        # The other process closed the pipe.
        return None
    except RayEmbedError as error:
        return error
    except Exception:
        return RunError(f"an error while building the encoder:\n{traceback.format_exc()}")


def _start_builder(folder: str, model: str) -> "Builder":
    from ray_embed.core.user_code import enter_folder
    from ray_embed.encoders.build import Builder, import_packages

    enter_folder(folder)
    import_packages(model, folder)
    return Builder()


def _build_requested(builder: "Builder") -> "Encoder":
    from ray_embed.encoders.build import needs_tensorflow
    from ray_embed.encoders.tensorflow_setup import configure_tensorflow, import_tensorflow

    spec, threads, saved_weights = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process
    if needs_tensorflow(spec):
        import_tensorflow()
        configure_tensorflow(threads)
    return builder.build(spec, threads, saved_weights)
