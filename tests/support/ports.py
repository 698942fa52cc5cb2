# SPDX-License-Identifier: Apache-2.0
"""Ports for servers of the tests."""

import socket


def find_free_port() -> int:
    """Give a port of the loopback address that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
