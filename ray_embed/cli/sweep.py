# SPDX-License-Identifier: Apache-2.0
"""`ray-embed sweep`: run the encoders, then compare their runs."""

import contextlib
import re
import shutil
import sys
from typing import Any

import click

from ray_embed.config import make_config
from ray_embed.core.console import say
from ray_embed.core.uri import is_uri, join_uri, remove_credentials
from ray_embed.errors import InputError
from ray_embed.results import Run
from ray_embed.runtime.warm_ray import Session
from ray_embed.sweeps.sweep import Sweep, execute_sweep

_PLOT = "comparison.png"


def run_sweep(options: dict[str, Any]) -> None:
    """Run the encoders, print their runs and how they compare, and exit with 1 if one failed.

    Args:
        options: the options. `model`, `weights` and `layers` may have several values.

    Raises:
        InputError: an option or a source is invalid, or all encoders failed because of their input.
        RunError: all encoders failed.
    """
    axes = {name: _list_values(options.pop(name, ())) for name in ("model", "weights", "layers")}
    config = make_config(options | ({"model": axes["model"][0]} if axes["model"] else {}))
    layers = [tuple(part.strip() for part in names.split(",")) for names in axes["layers"]]
    # Ray prints messages about actors on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr), Session():
        swept = execute_sweep(config, axes["model"], axes["weights"], layers)
    width = max(map(len, swept.runs))
    for name, run in swept.runs.items():
        click.echo(f"{name:{width}}  {_describe(run)}")
    if len(swept.runs) > 1 or any(len(run.layers) > 1 for run in swept.runs.values()):
        _compare(swept)
    out = remove_credentials(swept.out, "***@")
    click.echo(f"view      ray-embed view {out}")
    for name, error in swept.failures.items():
        click.echo(f"ray-embed: {name} failed: {error}", err=True)
    if swept.failures:
        sys.exit(1)


def _list_values(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(each) for each in value]


def _describe(run: Run) -> str:
    return f"{run.rows} embedded, {run.rejects} rejected, in {remove_credentials(run.path, '***@')}"


def _compare(swept: Sweep) -> None:
    """Print the measures of the runs side by side, and plot them if their names have numbers."""
    from ray_embed.analysis.comparison.compare import compare
    from ray_embed.analysis.comparison.plot import check_target, draw_comparison
    from ray_embed.analysis.comparison.report import format_comparison

    try:
        comparison = compare([run.path for run in swept.runs.values()], say=say)
    except InputError as error:
        say(f"not compared: {error}")
        return
    columns = shutil.get_terminal_size((100, 24)).columns
    click.echo("\n".join(format_comparison(comparison, columns)))
    if is_uri(swept.out) or not all(re.search(r"\d", name) for name in swept.runs):
        return
    plot = join_uri(swept.out, _PLOT)
    try:
        check_target(plot)
        draw_comparison(comparison, plot, say)
    except InputError as error:
        say(f"no plot: {error}")
