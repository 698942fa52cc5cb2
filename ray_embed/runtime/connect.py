# SPDX-License-Identifier: Apache-2.0
"""Join a running Ray cluster, and send the user's modules to its nodes."""

import contextlib
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError, RuntimeEnvSetupError

from ray_embed.config import RunConfig
from ray_embed.core.uri import redact_uri, remove_credentials
from ray_embed.errors import InputError, get_first_line
from ray_embed.runtime import code_shipping

_CONNECT_SECONDS = 10.0
_CHECK = (
    "is it running, and does it want a token? Then set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
    "the token or RAY_AUTH_TOKEN_PATH to a file with it (~/.ray/auth_token is found by itself)"
)
_VERSIONS = "install the same versions of Ray and Python on all machines"


def join_cluster(address: str, config: RunConfig, options: dict[str, Any]) -> None:
    """Connect this process to a running Ray, and send the user's modules to its nodes.

    Args:
        address: the cluster's address, in the form that `ray.init` accepts.
        config: the options of the run, which name the modules.
        options: further options of `ray.init`.

    Raises:
        InputError: nothing answers there, the cluster requires a token, or its versions differ.
    """
    given = f"--address {redact_uri(address)}"
    _check_listens(address, given)
    try:
        with code_shipping.ship_modules(config, Path.cwd()) as environment:
            ray.init(address, **options, **environment)
    except RuntimeEnvSetupError as error:
        raise InputError(
            f"{given}: the modules of {Path.cwd()} cannot be sent there: {get_first_line(error)}"
        ) from error
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        # Ray's message about versions has several lines.
        message = remove_credentials(" ".join(str(error).split()))
        fix = _VERSIONS if "Version mismatch" in message else _CHECK
        raise InputError(
            f"{given}: no Ray cluster can be joined there ({message}); {fix}"
        ) from error


def _check_listens(address: str, given: str) -> None:
    """Check that something listens at the address; Ray itself would try for minutes.

    Raises:
        InputError: nothing listens there.
    """
    with contextlib.suppress(ValueError):
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname is None or parts.port is None:
            # The address is a keyword of Ray, such as `auto`.
            return
        try:
            socket.create_connection((parts.hostname, parts.port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise InputError(
                f"{given}: nothing listens there ({error.strerror or error}); start the cluster, "
                "or give its head node's host:port (the port is 6379 where none was chosen)"
            ) from error
