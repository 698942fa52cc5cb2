# SPDX-License-Identifier: Apache-2.0
"""A folder on this machine as the object store that URIs name."""

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from ray_embed.storage import filesystem


def use_as_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the URI returned name a folder, which is not local to the code that reads it."""
    store = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    monkeypatch.setattr(filesystem, "_open_filesystem", lambda uri: (store, ""))
    return "s3://bucket"
