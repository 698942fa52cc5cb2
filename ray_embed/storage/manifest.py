# SPDX-License-Identifier: Apache-2.0
"""Read and write ``run.json``, which describes a run and marks its folder as a run folder."""

import hashlib
import json
from typing import Any

from ray_embed.errors import InputError
from ray_embed.storage.filesystem import TEMPORARY, Folder
from ray_embed.storage.layout import RUN

# The version of the format of ``run.json``.
_FORMAT = 1


def read_run(folder: Folder) -> dict[str, Any] | None:
    """Read ``run.json``; return None if the folder does not exist or is empty.

    Raises:
        InputError: the folder holds something else, or ``run.json`` is damaged or has another
            version.
    """
    if not folder.exists(RUN):
        if all(name == TEMPORARY for name in folder.list_names()):
            return None
        # A run that is being started may have written it meanwhile.
        if not folder.exists(RUN):
            raise InputError(
                f"{folder.display_path()}: it is not a run folder (it has files, but no {RUN}); "
                "name a run folder, or for a new run an --out that does not exist yet"
            )
    run = _read_marked(folder)
    if run is None:
        raise InputError(
            f"{folder.display_path(RUN)}: it does not describe a run: another program wrote it, or "
            "it was edited; name a run folder, or for a new run an --out that does not exist yet"
        )
    if run["ray_embed"].get("format") != _FORMAT:
        raise InputError(
            f"{folder.display_path(RUN)}: another version of ray_embed wrote it; run again with "
            "another --out, or with --overwrite"
        )
    content = {name: value for name, value in run.items() if name != "ray_embed"}
    if run["ray_embed"].get("checksum") != compute_checksum(content):
        raise InputError(
            f"{folder.display_path(RUN)}: it was damaged or edited after it was written; restore "
            "it, or start again with --overwrite"
        )
    return run


def find_output(run: dict[str, Any], column: str) -> dict[str, Any]:
    """Return what ``run.json`` says about a feature column: layer, pooling and dimension."""
    outputs: list[dict[str, Any]] = run["encoder"]["outputs"]
    return next(output for output in outputs if output["column"] == column)


def get_thumbnail_fingerprint(run: dict[str, Any]) -> str:
    """Return the fingerprint of the thumbnails of a run, given the content of its ``run.json``."""
    # Earlier versions wrote that of the run.
    return str(run.get("thumbnail_fingerprint", run["fingerprint"]))


def delete_run(folder: Folder) -> None:
    """Delete the content of a run folder, deleting ``run.json``, which marks it, last."""
    names = [name for name in folder.list_names() if name != TEMPORARY]
    for name in sorted(names, key=RUN.__eq__):
        folder.delete(name)


def is_run(folder: Folder) -> bool:
    """Return whether a folder is a run folder of any version. No other folder may be deleted."""
    return folder.exists(RUN) and _read_marked(folder) is not None


def _read_marked(folder: Folder) -> dict[str, Any] | None:
    """Read ``run.json``; return None if ray_embed did not write it."""
    try:
        run = json.loads(folder.read(RUN))
    except ValueError:
        return None
    return run if isinstance(run, dict) and isinstance(run.get("ray_embed"), dict) else None


def write_run(folder: Folder, content: dict[str, Any], version: str) -> None:
    """Write ``run.json``, marked as written by ray_embed.

    Raises:
        StorageError: the file cannot be written.
    """
    mark = {"version": version, "format": _FORMAT, "checksum": compute_checksum(content)}
    run = {"ray_embed": mark, **content}
    # Everything else can be repaired as long as this file is intact.
    folder.write(RUN, json.dumps(run, indent=1).encode(), durable=True)


def compute_checksum(content: dict[str, Any]) -> str:
    """Return the checksum of JSON-like data, which shows whether a file was edited or damaged."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
