# SPDX-License-Identifier: Apache-2.0
"""The command line. TensorFlow and Ray are imported only by the commands that work with them."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ray_embed._version import __version__
from ray_embed.cli.options import MODEL_OPTIONS, RUN_OPTIONS, Grouped, with_options
from ray_embed.errors import RayEmbedError, RunError

if TYPE_CHECKING:
    from ray_embed.config import RunConfig

_INTERRUPTED = 130
_as_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_sampled = click.option(
    "--sample",
    type=click.IntRange(min=2),
    default=10_000,
    show_default=True,
    help="Records judged at most, drawn by split and label.",
)
_labelled = click.option(
    "--labels",
    type=click.Choice(["classes", "values"]),
    help="What labels that are numbers are.  [classes if whole; of floats all, of 50 at most]",
)
_GUARDED = ("run", "extract", "reduce", "evaluate", "demo")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ray-embed")
def cli() -> None:
    """See how an image encoder's features cluster.

    `ray-embed run` embeds images with an encoder, writes features and labels to Parquet, and
    prepares TensorBoard's projector; `ray-embed view` opens it.
    """


@cli.command(cls=Grouped)
@with_options(RUN_OPTIONS)
def run(**options: Any) -> None:
    """Extract features, then merge them for the projector; again on the same --out: the rest."""
    _execute(options, and_reduce=True)


@cli.command(cls=Grouped)
@with_options(RUN_OPTIONS)
def extract(**options: Any) -> None:
    """Write the Parquet parts only."""
    _execute(options, and_reduce=False)


@cli.command()
@click.argument("run")
def reduce(run: str) -> None:
    """Merge what `extract` wrote into RUN/projector."""
    from ray_embed.projector.reduce import reduce as merge
    from ray_embed.projector.reduce import unseen
    from ray_embed.storage.filesystem import Folder

    points = merge(run)
    for line in unseen(Folder.at(run), points):
        click.echo(line, err=True)
    click.echo(f"{points} points in {run.rstrip('/')}/projector\nlook      ray-embed view {run}")


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--host", default="localhost", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="[the first free one from 6006 on]")
def view(runs: tuple[str, ...], host: str, port: int | None) -> None:
    """Open TensorBoard on a run, on several, or on all runs of a folder."""
    from ray_embed.projector.server import view as serve

    # What it has fetched or linked goes away with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(runs, host, port, click.echo)
    except KeyboardInterrupt:
        # TensorBoard's threads go on while Python ends, and may abort it.
        sys.stdout.flush()
        os._exit(_INTERRUPTED)


@cli.command()
@click.argument("run")
@click.option("--verify", is_flag=True, help="Read everything and say whether it is sound.")
@_as_json
def status(run: str, verify: bool, as_json: bool) -> None:
    """Say what is done of a run, and what was rejected."""
    from ray_embed.runs.status import status as look

    found = look(run, verify=verify)
    click.echo(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))
    if found.problems:
        sys.exit(1)


@cli.command()
@click.argument("run")
@click.option("--layer", help="Judge this one.  [all]")
@_sampled
@_labelled
@_as_json
@click.option(
    "--random-weights",
    is_flag=True,
    help="Judge the same architecture with random weights beside it.",
)
def evaluate(
    run: str,
    layer: str | None,
    sample: int,
    labels: Any,
    as_json: bool,
    random_weights: bool,
) -> None:
    """Say in numbers how well the features of a run cluster, beside those of raw pixels."""
    from ray_embed.analysis.evaluation.evaluate import evaluate as judge
    from ray_embed.analysis.evaluation.record import record
    from ray_embed.results import load

    # What runs for random weights prints on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        judged = load(run)
        found = judge(judged, layer, sample, random_weights, labels)
    entries = {name: one.to_json() for name, one in found.items()}
    if as_json:
        click.echo(json.dumps(entries, ensure_ascii=False))
    else:
        click.echo("\n\n".join("\n".join(one.lines()) for one in found.values()))
    record(judged, entries)


@cli.command()
@click.argument("run")
@click.option("--layer", help="Whose features, where there are several.")
@_labelled
def plot(run: str, layer: str | None, labels: Any) -> None:
    """Draw maps of the features, and where the encoder fails, into RUN/plots."""
    from ray_embed.analysis.plotting.plot import plot as draw

    draw(run, layer, click.echo, labels)


@cli.command(cls=Grouped)
@with_options(MODEL_OPTIONS)
def layers(**options: Any) -> None:
    """List the layers that --layer accepts, with their output shapes.

    Models inside the model come first, marked with --submodel, which accepts them.
    """
    from ray_embed.config import make_config
    from ray_embed.encoders.tensorflow_setup import quiet_keras
    from ray_embed.pipeline import models_and_layers

    config = make_config({"sources": {"none": ""}, **_given(options)})
    # What the user's code prints is no layer.
    with quiet_keras(), contextlib.redirect_stdout(sys.stderr):
        models, layers = models_and_layers(config)
    for name, shape in models.items():
        click.echo(f"{name}\t{_shape_text(shape) or '-'}\t--submodel {shlex.quote(name)}")
    for name, shape in layers.items():
        click.echo(f"{name}\t{_shape_text(shape)}")


def _shape_text(shape: tuple[int | None, ...]) -> str:
    sides = ", ".join("N" if side is None else str(side) for side in shape)
    return sides and f"({sides})"


@cli.command(cls=Grouped)
@with_options(RUN_OPTIONS)
@click.option("--sheet", default="preview.png", show_default=True, help="Picture to write.")
def preview(sheet: str, **options: Any) -> None:
    """Show a few records as the encoder gets them, and what was decided, before a long run."""
    from ray_embed.encoders.tensorflow_setup import quiet_keras
    from ray_embed.extraction.preview import preview as show

    with quiet_keras():
        show(_configured(options), sheet, click.echo)


@cli.command()
@click.argument("runs", metavar="RUN RUN…", nargs=-1, required=True)
@click.option("--layer", metavar="NAME", help="Layer to take of each.  [all, a column each]")
@_sampled
@_labelled
@_as_json
@click.option(
    "--plot", metavar="FILE",
    help="Draw the measures over the runs, in the order given, into a .png or .svg file.",
)  # fmt: skip
def compare(
    runs: tuple[str, ...],
    layer: str | None,
    sample: int,
    labels: Any,
    as_json: bool,
    plot: str | None,
) -> None:
    """Say which of several runs, or layers of a run, is the better one, and how alike they are.

    All are judged on the same records, where all hold them; so differences are the encoders'.
    """
    from ray_embed.analysis.comparison import plot as plot_module
    from ray_embed.analysis.comparison.compare import compare as judge
    from ray_embed.analysis.comparison.report import lines
    from ray_embed.analysis.comparison.to_json import plain

    if plot:
        plot_module.check_target(plot)
    comparison = judge(runs, layer, sample, lambda line: click.echo(line, err=True), labels)
    if plot:
        plot_module.draw(comparison, plot, lambda line: click.echo(line, err=True))
    width = shutil.get_terminal_size((100, 24)).columns
    found = plain(comparison)
    click.echo(json.dumps(found) if as_json else "\n".join(lines(comparison, width)))


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="Run folder.")
def demo(out: str) -> None:
    """Train a small auto-encoder on digits, embed them, and say how to look."""
    from ray_embed.cli.demo import demo as show

    show(out, click.echo)


def _execute(options: dict[str, Any], *, and_reduce: bool) -> None:
    config = _configured(options)
    # Ray is imported with this, so only when the options are right.
    from ray_embed.pipeline import execute

    # Ray prints what happens to actors on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        outcome = execute(config, and_reduce=and_reduce)
    click.echo(outcome.summary())


def _configured(options: dict[str, Any]) -> "RunConfig":
    """Make the configuration of a run from the command line, and the file it names."""
    from ray_embed.config import load_yaml, make_config

    file = options.pop("config")
    return make_config({**(load_yaml(file) if file else {}), **_given(options)})


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Give the options that were given on the command line, JSON parsed."""
    from ray_embed.config import parse_json, tuples

    given = {name: value for name, value in options.items() if value not in (None, ())}
    for name in ("source_kwargs", "model_kwargs"):
        if name in given:
            given[name] = tuples(parse_json(f"--{name.replace('_', '-')}", given[name]))
    return given


def main() -> None:
    """Run the command line; exits with 0, 1 (failed while running), 2 (bad input) or 130."""
    started = time.time()
    # Where Ray is imported already, this is somebody's Python, which is not to be copied.
    if (
        sys.argv[1:2]
        and sys.argv[1] in _GUARDED
        and hasattr(os, "fork")
        and "ray" not in sys.modules
    ):
        from ray_embed.cli.supervisor import guarded

        with _interrupts_said(started):
            guarded(partial(_main, started), partial(_abandoned, started))
    _main(started)


def _main(started: float) -> NoReturn:
    # Read by TensorFlow when it is imported, here or in an actor.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _interrupts_said(started):
            code = cli.main(standalone_mode=False)
    except RayEmbedError as error:
        click.echo(f"ray-embed: {error}", err=True)
        if isinstance(error, RunError) and error.goes_on:
            _say_next_step(started)
        code = error.exit_code
    except OSError as error:
        # Of a file that is none of the run folder's: a temporary one, say.
        click.echo(f"ray-embed: {error}", err=True)
        _say_next_step(started)
        code = 1
    except click.ClickException as error:
        error.show()
        code = 2
    sys.exit(code)


@contextlib.contextmanager
def _interrupts_said(started: float) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, click.Abort, SystemExit) as error:
        # Ray turns SIGTERM into an exit by its number.
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        click.echo("interrupted", err=True)
        _say_next_step(started)
        sys.exit(_INTERRUPTED)


def _abandoned(started: float, how: str) -> int:
    click.echo(
        f"ray-embed: the process ended unexpectedly ({how}): the memory may have been full, or one "
        "of Ray's processes was killed",
        err=True,
    )
    _say_next_step(started)
    return 1


def _say_next_step(started: float) -> None:
    from ray_embed.runs.resuming import next_step

    if line := next_step(cli, sys.argv[1:], started):
        click.echo(line, err=True)
