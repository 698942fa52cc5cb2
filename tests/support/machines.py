# SPDX-License-Identifier: Apache-2.0
"""Machines to log in to, each with a network, processes and a home of its own.

Linux' namespaces make them, so root is needed, and `ip`, `sshd` and `rsync`. Nothing outside
reaches them, and what runs in them ends with them: Ray may use its usual ports there, and may stop
what it takes for its own. All other files are those of this machine.
"""

import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_SSHD = "/usr/sbin/sshd"
_SSHD_CONFIG = """
ListenAddress {address}:22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
PidFile none
SetEnv RAY_TMPDIR={home} RAY_USAGE_STATS_ENABLED=0
"""
_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
_MOUNT_AND_WAIT = """
mount --bind {folder}/{number} {folder}/home
mount --bind {folder}/passwd /etc/passwd
while :; do sleep 1000; done
"""


@dataclass(frozen=True)
class Machine:
    """One that is there: its address, its home as seen from outside, and its first process."""

    address: str
    home: Path
    first: psutil.Process

    def make_prefix(self, *namespaces: str) -> list[str]:
        """Give the words before a command that is to run in it, or in its network alone."""
        return ["nsenter", f"--target={self.first.pid}", *(f"--{name}" for name in namespaces)]


def find_obstacle() -> str:
    """Say what this machine lacks to make others; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return "only root makes namespaces of networks"
    if not all(map(shutil.which, (_SSHD, "ssh", "rsync", "ip", "nsenter"))):
        return "needs the Debian packages openssh-server, openssh-client, rsync and iproute2"
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True).returncode != 0:
        return "this system lets nobody make namespaces"
    return ""


def start(folder: Path) -> list[Machine]:
    """Start two machines that reach each other.

    Args:
        folder: with a short name, as Ray's sockets are below; its file `key` logs in to both, and
            `home` is where both have their home.
    """
    for name in ("key", "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "home").mkdir()
    (folder / "passwd").write_text(_list_users(folder / "home"))
    Path("/run/sshd").mkdir(exist_ok=True)
    one, two = (_start_machine(f"10.77.0.{number}", folder, number) for number in (1, 2))
    link = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0"]
    _run(*one.make_prefix("net"), *link, "netns", two.first.pid)
    for machine, other in ((one, two), (two, one)):
        for words in (
            "link set lo up",
            f"addr add {machine.address}/24 dev eth0",
            "link set eth0 up",
            # Ray's address is the one that leads into the world.
            f"route add default via {other.address}",
        ):
            _run(*machine.make_prefix("net"), "ip", *words.split())
        config = machine.home / "sshd_config"
        config.write_text(
            _SSHD_CONFIG.format(address=machine.address, folder=folder, home=folder / "home")
        )
        _run(*machine.make_prefix("net", "pid", "mount"), _SSHD, "-f", config)
    return [one, two]


def stop(machine: Machine) -> None:
    """End a machine and everything in it."""
    made_by = machine.first.parent()
    machine.first.kill()
    made_by.wait()


def _start_machine(address: str, folder: Path, number: int) -> Machine:
    own = folder / str(number)
    own.mkdir()
    script = _MOUNT_AND_WAIT.format(folder=folder, number=number)
    process = subprocess.Popen(
        # Not to outlive this process.
        ["setpriv", "--pdeathsig=KILL", *_NAMESPACES, "bash", "-c", script],
        stderr=subprocess.DEVNULL,
    )
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    return Machine(address, own, children[0])


def _list_users(home: Path) -> str:
    """Give the users of this machine, with another home for the user of this process."""
    user = pwd.getpwuid(os.getuid())
    me = f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{home}:/bin/bash"
    others = Path("/etc/passwd").read_text().splitlines()
    return "\n".join([me, *others, ""])


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, timeout=60)
