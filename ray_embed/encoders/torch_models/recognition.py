# SPDX-License-Identifier: Apache-2.0
"""Recognize modules and exported programs of PyTorch without importing it."""

import sys
import zipfile
from pathlib import Path
from typing import Any

# torch.export.save writes this file into its archive, below a folder.
_MARKER, _FORMAT = "archive_format", b"pt2"
# What it wrote until version 2.7.
_EARLIER = "serialized_exported_program.json"


def is_module(value: Any) -> bool:
    """Return whether an object is a torch.nn.Module."""
    # Whoever made a module has imported this.
    found = sys.modules.get("torch.nn")
    return found is not None and isinstance(value, found.Module)


def is_archive(path: Path) -> bool:
    """Return whether a file was written by torch.export.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name == _EARLIER:
                    return True
                if name.rpartition("/")[2] == _MARKER:
                    return archive.read(name).strip() == _FORMAT
    except (OSError, zipfile.BadZipFile):
        return False
    return False
