# SPDX-License-Identifier: Apache-2.0
"""What a command that ended early leaves behind, and the command that continues it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

_RUNS = ("run", "extract")


@dataclass(frozen=True)
class _Kept:
    """What is in a run folder: whether this command has begun it, and has finished a shard."""

    begun: bool
    finished: bool


def next_step(group: click.Group, arguments: Sequence[str], started: float) -> str | None:
    """Say what a command keeps and how to resume it; None where there is nothing true to say.

    Args:
        group: the command line.
        arguments: of the command, its name first.
        started: when it was started, in seconds since the epoch.
    """
    try:
        given = _given(group, arguments)
        if given is None:
            return None
        out, overwrites = given
        kept = _look(out, started, overwrites=overwrites)
    except (Exception, KeyboardInterrupt):
        # The storage may be what failed, or the options.
        return None
    if kept.finished:
        return f"Finished shards are kept. Resume with: {_command(arguments, resumes=True)}"
    if kept.begun:
        return f"No shard is finished yet. Start again with: {_command(arguments, resumes=True)}"
    return f"Nothing is written yet. Start again with: {_command(arguments, resumes=False)}"


def _given(group: click.Group, arguments: Sequence[str]) -> tuple[str, bool] | None:
    """Return the run folder a command extracts into, and whether it starts that folder afresh.

    None for a command that extracts nothing, or that starts from the beginning each time.
    """
    name = arguments[0] if arguments else ""
    if name not in (*_RUNS, "evaluate"):
        return None
    context = group.commands[name].make_context(name, list(arguments[1:]), resilient_parsing=True)
    options: dict[str, Any] = context.params
    if name == "evaluate":
        from ray_embed.baseline import FOLDER
        from ray_embed.core.uri import child

        return (child(options["run"], FOLDER), False) if options["random_weights"] else None
    from ray_embed.config import load_yaml
    from ray_embed.runs.workspace import default_name

    file = load_yaml(options["config"]) if options.get("config") else {}
    out, model, weights = (options.get(key) or file.get(key) for key in ("out", "model", "weights"))
    overwrites = bool(options.get("overwrite") or file.get("overwrite"))
    return str(out or default_name(str(model), weights)), overwrites


def _look(out: str, started: float, *, overwrites: bool) -> _Kept:
    from ray_embed.storage import manifest, part_files
    from ray_embed.storage.filesystem import Folder

    folder = Folder.at(out)
    if not folder.exists(manifest.RUN):
        return _Kept(begun=False, finished=False)
    written = folder.info(manifest.RUN).mtime
    # Some file systems keep whole seconds.
    if overwrites and written is not None and written.timestamp() < int(started):
        # It is still the run that was to be overwritten.
        return _Kept(begun=False, finished=False)
    parts = (name for name in folder.names(part_files.FEATURES) if name.startswith("part-"))
    return _Kept(begun=True, finished=next(parts, None) is not None)


def _command(arguments: Sequence[str], *, resumes: bool) -> str:
    """Return the command to type next, without passwords; one that resumes overwrites nothing."""
    from ray_embed.core.uri import without_credentials

    given = [
        without_credentials(argument, "***@")
        for argument in arguments
        if not (resumes and argument == "--overwrite")
    ]
    command = shlex.join(["ray-embed", *given])
    return f"{command} (with no overwrite in the file)" if "--config" in command else command
