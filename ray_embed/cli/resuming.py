# SPDX-License-Identifier: Apache-2.0
"""Says, after a command that ended early, what it keeps and which command resumes it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from ray_embed.storage import layout

_RUNS = ("run", "extract")


@dataclass(frozen=True)
class _Kept:
    """What a command leaves: whether it has begun the run, and whether a shard is finished."""

    begun: bool
    finished: bool


def suggest_next_command(
    group: click.Group, arguments: Sequence[str], started: float
) -> str | None:
    """Return a line with what a command keeps and how to resume it; None where that is not known.

    Args:
        group: the command line.
        arguments: those of the command, its name first.
        started: when it was started, in seconds since the epoch.
    """
    try:
        target = _find_run_folder(group, arguments)
        if target is None:
            return None
        out, overwrites = target
        kept = _look_into(out, started, overwrites=overwrites)
    except (Exception, KeyboardInterrupt):
        # The storage or the options may be what failed.
        return None
    if kept.finished:
        return f"Finished shards are kept. Resume with: {_format_command(arguments, resumes=True)}"
    command = _format_command(arguments, resumes=kept.begun)
    if kept.begun:
        return f"No shard is finished yet. Start again with: {command}"
    return f"Nothing is written yet. Start again with: {command}"


def _find_run_folder(group: click.Group, arguments: Sequence[str]) -> tuple[str, bool] | None:
    """Return the run folder that a command extracts into, and whether it overwrites that folder.

    None for a command that extracts nothing, or that starts from the beginning each time.
    """
    name = arguments[0] if arguments else ""
    if name not in (*_RUNS, "evaluate"):
        return None
    context = group.commands[name].make_context(name, list(arguments[1:]), resilient_parsing=True)
    options: dict[str, Any] = context.params
    if name == "evaluate":
        from ray_embed.core.uri import join_uri

        if not options["random_weights"]:
            return None
        return join_uri(options["run"], layout.RANDOM_WEIGHTS), False
    from ray_embed.config import load_yaml
    from ray_embed.runs.workspace import make_default_name

    file = load_yaml(options["config"]) if options.get("config") else {}
    out, model, weights = (options.get(key) or file.get(key) for key in ("out", "model", "weights"))
    overwrites = bool(options.get("overwrite") or file.get("overwrite"))
    return str(out or make_default_name(str(model), weights)), overwrites


def _look_into(out: str, started: float, *, overwrites: bool) -> _Kept:
    from ray_embed.storage.filesystem import Folder

    folder = Folder.open(out)
    if not folder.exists(layout.RUN):
        return _Kept(begun=False, finished=False)
    written = folder.get_info(layout.RUN).mtime
    # Some file systems keep times in whole seconds.
    if overwrites and written is not None and written.timestamp() < int(started):
        # The folder still holds the older run.
        return _Kept(begun=False, finished=False)
    parts = (name for name in folder.list_names(layout.FEATURES) if name.startswith("part-"))
    return _Kept(begun=True, finished=next(parts, None) is not None)


def _format_command(arguments: Sequence[str], *, resumes: bool) -> str:
    """Return the command to type, without passwords; one that resumes overwrites nothing."""
    from ray_embed.core.uri import remove_credentials

    words = [
        remove_credentials(argument, "***@")
        for argument in arguments
        if not (resumes and argument == "--overwrite")
    ]
    command = shlex.join(["ray-embed", *words])
    return f"{command} (with no overwrite in the file)" if "--config" in command else command
