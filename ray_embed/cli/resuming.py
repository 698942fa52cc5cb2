# SPDX-License-Identifier: Apache-2.0
"""After a command ends early, tell the user what was kept and how to resume it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from ray_embed.storage import layout

_RUNS, _SWEEP = ("run", "extract"), "sweep"


@dataclass(frozen=True)
class _Progress:
    """What a command left behind: whether the run was started, and any shard finished."""

    is_started: bool
    has_finished_shards: bool


def suggest_next_command(
    group: click.Group, arguments: Sequence[str], started: float
) -> str | None:
    """Return a line that says what was kept and how to resume, or None if that is unknown.

    Args:
        group: the command line.
        arguments: the command-line arguments, starting with the command name.
        started: the start time of the command, in seconds since the epoch.
    """
    try:
        target = _find_run_folder(group, arguments)
        if target is None:
            return None
        out, overwrites = target
        runs = _list_runs(out) if arguments[0] == _SWEEP else [out]
        progress = [_inspect_run_folder(run, started, overwrites=overwrites) for run in runs]
        is_started = any(each.is_started for each in progress)
    except (Exception, KeyboardInterrupt):
        # The storage or the options may be what failed.
        return None
    if any(each.has_finished_shards for each in progress):
        return f"Finished shards are kept. Resume with: {_format_command(arguments, resumes=True)}"
    command = _format_command(arguments, resumes=is_started)
    if is_started:
        return f"No shard was finished. Run again with: {command}"
    return f"Nothing was written. Run again with: {command}"


def _find_run_folder(group: click.Group, arguments: Sequence[str]) -> tuple[str, bool] | None:
    """Return the run folder (or that of all runs) that a command writes to, and whether it
    overwrites it.

    Return None for commands that extract nothing or always start over.
    """
    name = arguments[0] if arguments else ""
    if name not in (*_RUNS, _SWEEP, "evaluate"):
        return None
    context = group.commands[name].make_context(name, list(arguments[1:]), resilient_parsing=True)
    options: dict[str, Any] = context.params
    if name == "evaluate":
        from ray_embed.core.uri import join_uri

        if not options["random_weights"]:
            return None
        return join_uri(options["run"], layout.RANDOM_WEIGHTS), False
    from ray_embed.config import load_yaml
    from ray_embed.runs.workspace import make_default_name, make_sweep_name

    file = load_yaml(options["config"]) if options.get("config") else {}
    out, model, weights = (options.get(key) or file.get(key) for key in ("out", "model", "weights"))
    overwrites = bool(options.get("overwrite") or file.get("overwrite"))
    if name == _SWEEP:
        first = model if isinstance(model, str) else next(iter(model or ()), "")
        return str(out or make_sweep_name(make_default_name(first, None))), overwrites
    return str(out or make_default_name(str(model), weights)), overwrites


def _list_runs(out: str) -> list[str]:
    """Return the run folders in the folder of a sweep."""
    from ray_embed.core.uri import join_uri
    from ray_embed.storage.filesystem import Folder

    return [join_uri(out, name) for name in Folder.open(out).list_names()]


def _inspect_run_folder(out: str, started: float, *, overwrites: bool) -> _Progress:
    from ray_embed.storage.filesystem import Folder

    folder = Folder.open(out)
    if not folder.exists(layout.RUN):
        return _Progress(is_started=False, has_finished_shards=False)
    written = folder.get_info(layout.RUN).mtime
    # Some file systems keep times in whole seconds.
    if overwrites and written is not None and written.timestamp() < int(started):
        # The folder still holds the older run.
        return _Progress(is_started=False, has_finished_shards=False)
    parts = (name for name in folder.list_names(layout.FEATURES) if name.startswith("part-"))
    return _Progress(is_started=True, has_finished_shards=next(parts, None) is not None)


def _format_command(arguments: Sequence[str], *, resumes: bool) -> str:
    """Return the command to run, without passwords and, for resuming, without --overwrite."""
    from ray_embed.core.uri import remove_credentials

    words = [
        remove_credentials(argument, "***@")
        for argument in arguments
        if not (resumes and argument == "--overwrite")
    ]
    command = shlex.join(["ray-embed", *words])
    return (
        f"{command} (after removing `overwrite` from the YAML file)"
        if "--config" in command
        else command
    )
