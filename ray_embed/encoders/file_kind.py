# SPDX-License-Identifier: Apache-2.0
"""Recognizes Keras' two file formats by their content, whatever the file is called."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ZIP, HDF5 = "zip", "hdf5"


def file_kind(path: str | Path) -> str:
    """Return `zip` (what ``.keras`` usually is), `hdf5`, or an empty string for another file.

    The first bytes decide. A file that is neither goes by its ending, so that a damaged one is
    reported as what it was meant to be.
    """
    import h5py

    path = Path(path)
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            start = file.read(4)
        # A cut-off archive still begins like one.
        if start.startswith(b"PK") or zipfile.is_zipfile(path):
            return ZIP
        if h5py.is_hdf5(path):
            return HDF5
    return {".keras": ZIP, ".h5": HDF5, ".hdf5": HDF5}.get(path.suffix.lower(), "")


@contextlib.contextmanager
def with_ending(path: Path, ending: str) -> Iterator[Path]:
    """Yield a path to the same file that has the ending by which Keras chooses its reader."""
    if path.name.endswith(ending):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ray_embed_model_") as scratch:
        link = Path(scratch, f"model{ending}")
        link.symlink_to(path.resolve())
        yield link
