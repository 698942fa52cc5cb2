# SPDX-License-Identifier: Apache-2.0
"""Architectures of keras.applications by name: ``keras:resnet50``."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_embed.core.model_names import KERAS, Application, find_application
from ray_embed.encoders.forms.base import Form
from ray_embed.encoders.forms.kept_model import describe_architecture, wrap_kept_model
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec, KeptModel
from ray_embed.errors import InputError, get_first_line

# The weights that Keras publishes.
_PUBLISHED = "imagenet"
_TIMEOUT_SECONDS = 30.0
# What Keras says when a download fails.
_FAILED_DOWNLOAD = re.compile(r"URL fetch failure on (?P<url>\S+): (?:None -- )?(?P<reason>.*)")


def _matches(spec: EncoderSpec) -> bool:
    return isinstance(spec.model, str) and spec.model.startswith(KERAS)


def _load(spec: EncoderSpec) -> LoadedModel:
    """Build the architecture, with the published weights unless others are requested.

    Raises:
        InputError: Keras does not have the architecture, cannot build it with these arguments, or
            cannot download its weights.
    """
    import keras

    try:
        application = find_application(spec.model)
    except ValueError as error:
        raise InputError(f"--model {error}") from error
    function = getattr(keras.applications, application.name, None)
    if function is None:
        raise InputError(
            f"--model {spec.model_name}: keras.applications of Keras {keras.__version__} has no "
            f"{application.name}; install a later Keras"
        )
    arguments = {
        "include_top": False,
        "input_shape": _find_input_shape(application, spec),
        "weights": _PUBLISHED if spec.weights is None else None,
        **spec.model_kwargs,
    }
    try:
        with _limit_waiting():
            model = function(**arguments)
    except Exception as error:
        raise _explain(spec, arguments, error) from error
    kept = KeptModel(
        architecture=describe_architecture(model),
        pixels={"preprocess": f"keras.applications.{application.module}:preprocess_input"},
        notes=(_describe(spec, application, arguments),),
    )
    return wrap_kept_model(model, spec, kept)


def _find_input_shape(application: Application, spec: EncoderSpec) -> tuple[int, int, int]:
    import keras

    height, width = spec.image_size or (application.size, application.size)
    first = keras.config.image_data_format() == "channels_first"
    return (3, height, width) if first else (height, width, 3)


@contextlib.contextmanager
def _limit_waiting() -> Iterator[None]:
    """Let a download fail that gets no answer; Keras itself would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _describe(spec: EncoderSpec, application: Application, arguments: dict[str, Any]) -> str:
    top = "with" if arguments["include_top"] else "without"
    weights = ", with its ImageNet weights" if arguments["weights"] == _PUBLISHED else ""
    return (
        f"--model {spec.model_name}: {application.name} of keras.applications {top} its "
        f"classifier{weights}"
    )


def _explain(spec: EncoderSpec, arguments: dict[str, Any], error: Exception) -> InputError:
    """Return an error that says what failed, and which file to put where."""
    where = f"--model {spec.model_name}"
    failed = _FAILED_DOWNLOAD.search(str(error))
    if failed:
        url = failed["url"]
        file = _find_cache() / url.rpartition("/")[2]
        return InputError(
            f"{where}: its weights cannot be downloaded: {failed['reason']}\ndownload {url} "
            f"elsewhere and save it as {file}, or give other weights: --weights FILE, or "
            "--weights random"
        )
    if isinstance(error, OSError):
        return InputError(
            f"{where}: its weights cannot be downloaded to {_find_cache()}: "
            f"{get_first_line(error)}; check the network, or give --weights FILE"
        )
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return InputError(
        f"{where}: Keras cannot build it with ({given}): {get_first_line(error)}; check "
        "--image-size and --model-kwargs"
    )


def _find_cache() -> Path:
    """Return the folder in which Keras keeps downloaded weights."""
    home = os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()
    return Path(home) / "models"


FORM = Form(matches=_matches, load=_load)
