# SPDX-License-Identifier: Apache-2.0
"""Simulate machines to log in to, each with its own network, processes and home.

They are made of Linux namespaces, which needs root, `ip`, `sshd` and `rsync`. Nothing outside can
reach them, and their processes end with them. So Ray may use its usual ports there, and may stop
all Ray processes. All other files are those of this machine.
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
    """A simulated machine: its address, its home as seen from outside, and its first process."""

    address: str
    home: Path
    first: psutil.Process

    def make_prefix(self, *namespaces: str) -> list[str]:
        """Return the words to put before a command, to run it in some namespaces of the machine."""
        return ["nsenter", f"--target={self.first.pid}", *(f"--{name}" for name in namespaces)]


def find_obstacle() -> str:
    """Return why machines cannot be simulated here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not all(map(shutil.which, (_SSHD, "ssh", "rsync", "ip", "nsenter"))):
        return "needs the Debian packages openssh-server, openssh-client, rsync and iproute2"
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True).returncode != 0:
        return "this system does not allow namespaces"
    return ""


def start(folder: Path) -> list[Machine]:
    """Start two machines that reach each other.

    Args:
        folder: a folder with a short name, because Ray's sockets are below it. The key `key` in
            it logs in to both machines, and both have their home in `home`.
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
            # Ray takes the address with the default route.
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
    """Kill a machine and everything in it."""
    parent = machine.first.parent()
    machine.first.kill()
    parent.wait()


def _start_machine(address: str, folder: Path, number: int) -> Machine:
    home = folder / str(number)
    home.mkdir()
    script = _MOUNT_AND_WAIT.format(folder=folder, number=number)
    process = subprocess.Popen(
        # Ends with this process.
        ["setpriv", "--pdeathsig=KILL", *_NAMESPACES, "bash", "-c", script],
        stderr=subprocess.DEVNULL,
    )
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    return Machine(address, home, children[0])


def _list_users(home: Path) -> str:
    """Return the users of this machine, with another home for the user of this process."""
    user = pwd.getpwuid(os.getuid())
    me = f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{home}:/bin/bash"
    others = Path("/etc/passwd").read_text().splitlines()
    return "\n".join([me, *others, ""])


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, timeout=60)
