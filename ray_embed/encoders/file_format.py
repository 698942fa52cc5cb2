# SPDX-License-Identifier: Apache-2.0
"""Detect Keras' two file formats by content, regardless of the file's name."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ZIP, HDF5 = "zip", "hdf5"


def detect_format(path: str | Path) -> str:
    """Return `zip` (usually a ``.keras`` file), `hdf5`, or an empty string for other files.

    The first bytes decide. If they match neither format, the suffix decides, so that an error about
    a damaged file names the format that the file should have.
    """
    import h5py

    path = Path(path)
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            start = file.read(4)
        # A truncated archive still begins like an archive.
        if start.startswith(b"PK") or zipfile.is_zipfile(path):
            return ZIP
        if h5py.is_hdf5(path):
            return HDF5
    return {".keras": ZIP, ".h5": HDF5, ".hdf5": HDF5}.get(path.suffix.lower(), "")


@contextlib.contextmanager
def link_with_suffix(path: Path, suffix: str) -> Iterator[Path]:
    """Yield a path to the same file with the suffix by which Keras chooses its reader."""
    if path.name.endswith(suffix):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ray_embed_model_") as scratch:
        link = Path(scratch, f"model{suffix}")
        link.symlink_to(path.resolve())
        yield link
