# SPDX-License-Identifier: Apache-2.0
"""``run.json``: what a run is, and the mark by which a folder is known as one of ours."""

import hashlib
import json
from typing import Any

from ray_embed.errors import InputError
from ray_embed.storage.filesystem import TEMPORARY, Folder
from ray_embed.storage.layout import RUN

# Written first of all, so that a folder is known as ours whenever the writing stops.
_FORMAT = 1


def read_run(folder: Folder) -> dict[str, Any] | None:
    """Read ``run.json``; None where the folder is not there or empty.

    Raises:
        InputError: the folder holds something else.
    """
    if not folder.exists(RUN):
        if all(name == TEMPORARY for name in folder.list_names()):
            return None
        # A run that is being started may have written it meanwhile.
        if not folder.exists(RUN):
            raise InputError(
                f"{folder.display_path()}: it holds something that is no run folder (no {RUN}); "
                "name a run folder, or for a new one an --out that is not there yet"
            )
    run = _read_marked(folder)
    if run is None:
        raise InputError(
            f"{folder.display_path(RUN)}: it is no description of a run: of another program, or "
            "edited; name a run folder, or for a new one an --out that is not there yet"
        )
    if run["ray_embed"].get("format") != _FORMAT:
        raise InputError(
            f"{folder.display_path(RUN)}: written by another version of ray_embed; run it again, "
            "with another --out or --overwrite"
        )
    content = {name: value for name, value in run.items() if name != "ray_embed"}
    if run["ray_embed"].get("checksum") != compute_checksum(content):
        raise InputError(
            f"{folder.display_path(RUN)}: it is not what was written: damaged, or edited; restore "
            "it, or --overwrite to start anew"
        )
    return run


def find_output(run: dict[str, Any], column: str) -> dict[str, Any]:
    """Give what ``run.json`` says of a feature column: its layer, pooling and dimension."""
    outputs: list[dict[str, Any]] = run["encoder"]["outputs"]
    return next(output for output in outputs if output["column"] == column)


def delete_run(folder: Folder) -> None:
    """Delete what a run folder holds, what marks it as one last of all."""
    names = [name for name in folder.list_names() if name != TEMPORARY]
    for name in sorted(names, key=RUN.__eq__):
        folder.delete(name)


def is_run(folder: Folder) -> bool:
    """Whether the folder is one of ours, of whatever version: only then it is ever deleted."""
    return folder.exists(RUN) and _read_marked(folder) is not None


def _read_marked(folder: Folder) -> dict[str, Any] | None:
    """Read ``run.json`` if it has our mark."""
    try:
        run = json.loads(folder.read(RUN))
    except ValueError:
        return None
    return run if isinstance(run, dict) and isinstance(run.get("ray_embed"), dict) else None


def write_run(folder: Folder, content: dict[str, Any], version: str) -> None:
    """Write ``run.json``, marked as ours.

    Raises:
        StorageError: nothing can be written there.
    """
    about = {"version": version, "format": _FORMAT, "checksum": compute_checksum(content)}
    marked = {"ray_embed": about, **content}
    # All else can be made again from it.
    folder.write(RUN, json.dumps(marked, indent=1).encode(), durable=True)


def compute_checksum(content: dict[str, Any]) -> str:
    """Give the checksum of plain data, as it is in a JSON file that is edited by nobody."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
