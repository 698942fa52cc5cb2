# SPDX-License-Identifier: Apache-2.0
"""Find ports for the servers of the tests."""

import socket


def find_free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
