# SPDX-License-Identifier: Apache-2.0
"""A Ray that is started here can be reached from this machine only."""

import contextlib
import ipaddress
import subprocess
import sys

import psutil
import pytest
from support.pictures import make_folder
from support.sample_runs import save_encoder


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


PYTHON = """
import sys, ray, ray_embed
source, model = sys.argv[1:]
ray_embed.run(ray_embed.RunConfig(sources={"valid": source}, model=model, out="run"))
"""
FROM = {"command line": ["-m", "ray_embed"], "Python": ["-c", PYTHON]}


@pytest.mark.slow
@pytest.mark.parametrize("start", FROM.values(), ids=FROM)
def test_nothing_listens_on_an_address_that_others_reach(tmp_path, start):
    source = make_folder(tmp_path / "valid", {"a": 5})
    model = save_encoder(tmp_path / "encoder.keras")
    words = [source, model]
    if "ray_embed" in start:
        words = ["run", "--source", source, "--model", model, "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, *start, *map(str, words)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = set()
    while process.poll() is None:
        found |= listening(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=0.5)
    assert process.returncode == 0
    assert {name for name, _ in found} >= {"raylet", "gcs_server"}
    assert not {(name, address) for name, address in found if not is_loopback(address)}
