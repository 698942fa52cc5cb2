# SPDX-License-Identifier: Apache-2.0
"""Decide whether a process that has run the user's code may run it again for another run.

It may if the other run could not notice: the same folder, and the modules that were imported have
the same content as they had then. A process without modules of its folder may work in any folder.
"""

import functools
import hashlib
import os
import sys
import sysconfig
import time
from pathlib import Path

from ray_embed.core import user_code

# Time stamps of files are coarser than the clock.
_CLOCK_SECONDS = 0.05
_PACKAGE_FOLDERS = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


class ImportedCode:
    """The modules of the user that this process has imported, and the content of their files.

    Installed packages and this one are not the user's, even if they are below the user's folder.
    """

    def __init__(self) -> None:
        self._checksums: dict[str, str] = {}
        self._since = time.time()

    def prepare_for_run(self, folder: str) -> bool:
        """Change to the folder of another run.

        Returns:
            False if the run could notice that the process is not a new one; then nothing is
            changed.
        """
        began = time.time()
        files = _list_files()
        if not all(self._is_unchanged(file) for file in files.values()):
            return False
        is_same = os.path.realpath(folder) == os.path.realpath(Path.cwd())
        if not is_same and not all(_is_elsewhere(*item, folder) for item in files.items()):
            return False
        self._since = began
        user_code.change_folder(folder)
        return True

    def _is_unchanged(self, file: str) -> bool:
        """Return whether a file still has the content that was imported."""
        try:
            changed = os.stat(file).st_ctime
            checksum = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except OSError:
            return False
        if file not in self._checksums:
            # Imported since the last check. If it was written since then, it is not known whether
            # the import read it before or after.
            if changed >= self._since - _CLOCK_SECONDS:
                return False
            self._checksums[file] = checksum
        return self._checksums[file] == checksum


def is_installed(path: str) -> bool:
    """Return whether a path belongs to Python or an installed package, or to this package."""
    below = path + os.sep
    return below.startswith(_list_installed()) or any(name in below for name in _PACKAGE_FOLDERS)


@functools.cache
def _list_installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = (paths["stdlib"], paths["platstdlib"], str(Path(__file__).parents[1]))
    return tuple(folder + os.sep for folder in folders)


def _list_files() -> dict[str, str]:
    """Return the files of imported modules, by name, without those of packages or this one."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.copy().items()}
    return {
        name: file
        for name, file in files.items()
        if isinstance(file, str) and not is_installed(file)
    }


def _is_elsewhere(name: str, file: str, folder: str) -> bool:
    """Return whether a module is not of the folder of this run, nor hidden by one of another."""
    package = name.partition(".")[0]
    is_hidden = any(Path(folder, other).exists() for other in (package, f"{package}.py"))
    return not is_hidden and not user_code.is_added_above(file)
