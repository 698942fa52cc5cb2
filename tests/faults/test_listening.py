# SPDX-License-Identifier: Apache-2.0
"""A Ray that is started here can be reached from this machine only."""

import contextlib
import ipaddress
import subprocess
import sys

import psutil
from conftest import make_folder
from samples import save_encoder


def listening(process):
    """The addresses that a process and its descendants listen on."""
    found = set()
    with contextlib.suppress(psutil.Error):
        main = psutil.Process(process.pid)
        for one in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found |= {
                    (one.name(), connection.laddr.ip)
                    for connection in one.net_connections("inet")
                    if connection.status == psutil.CONN_LISTEN
                }
    return found


def is_loopback(address):
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_nothing_listens_on_an_address_that_others_reach(tmp_path):
    source = make_folder(tmp_path / "valid", {"a": 5})
    model = save_encoder(tmp_path / "encoder.keras")
    words = ["run", "--source", source, "--model", model, "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", *map(str, words)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = set()
    while process.poll() is None:
        found |= listening(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=0.2)
    assert process.returncode == 0
    assert {name for name, _ in found} >= {"raylet", "gcs_server"}
    assert not {(name, address) for name, address in found if not is_loopback(address)}
