# SPDX-License-Identifier: Apache-2.0
"""Run an object store on this machine (moto's S3), behind a proxy that fails now and then."""

import contextlib
import http.client
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.ports import find_free_port

KEY, SECRET = "AKIAEXAMPLE", "a-secret-that-is-shown-nowhere"
_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InternalError</Code><Message>We '
    b"encountered an internal error. Please try again.</Message><RequestId>1</RequestId>"
    b"<HostId>2</HostId></Error>"
)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run an S3 server in its own process, and yield its address."""
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def environment(address: str) -> dict[str, str]:
    """Return the variables that make pyarrow use the server, here and in child processes."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass
class Faults:
    """The faults of the proxy, and counts of what it has done.

    Attributes:
        share: the share of requests that fail at random: an answer of 500, a connection reset, or
            an answer cut off.
        delay: how long each request waits, in seconds.
        deny: an error code of S3 to answer all requests with.
        done: the number of requests, and of each fault.
    """

    share: float = 0.0
    delay: float = 0.0
    deny: str | None = None
    done: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def proxy(address: str, faults: Faults, seed: int = 1) -> Iterator[str]:
    """Run a proxy before a server, and yield its address."""
    chance = random.Random(seed)
    guard = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.body()
            with guard:
                faults.done["requests"] += 1
                fails = chance.random() < faults.share
                how = chance.choice(["500", "reset", "cut off"]) if fails else "passed"
                faults.done[how] += 1
            time.sleep(faults.delay)
            if faults.deny:
                text = f"<Error><Code>{faults.deny}</Code><Message>No.</Message></Error>"
                self.answer(403, {"Content-Type": "application/xml"}, text.encode())
            elif how == "500":
                self.answer(500, {"Content-Type": "application/xml"}, _ERROR)
            elif how == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                self.connection.close()
            else:
                self.forward(body, how == "cut off")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def forward(self, body: bytes, cut_off: bool) -> None:
            connection = http.client.HTTPConnection(address, timeout=60)
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("transfer-encoding", "content-length", "expect")
            }
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            answer_headers = dict(answer.getheaders())
            connection.close()
            self.answer(answer.status, answer_headers, content, cut_off)

        def answer(
            self, status: int, headers: dict[str, str], content: bytes, cut_off: bool = False
        ) -> None:
            self.send_response(status)
            length = headers.get("Content-Length", str(len(content)))
            if self.command != "HEAD":
                length = str(len(content))
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut_off else content)
            if cut_off:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Print nothing: connections are reset on purpose."""

    running = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()


def make_bucket(name: str) -> None:
    """Create a bucket on the server that the environment names."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")
    filesystem.create_dir(path)


def upload(folder: os.PathLike[str], uri: str) -> None:
    """Copy a local file or folder to a URI."""
    from pyarrow import fs

    fs.copy_files(str(folder), uri)
