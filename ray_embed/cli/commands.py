# SPDX-License-Identifier: Apache-2.0
"""The commands. They import their dependencies lazily, so that `--help` is fast."""

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
from ray_embed.cli.options import (
    GroupedCommand,
    add_model_options,
    add_run_options,
    add_sweep_options,
    format_resume_note,
    option,
)
from ray_embed.core.garbage import pause_garbage_collection
from ray_embed.errors import RayEmbedError, RunError
from ray_embed.options import DEFAULT_SAMPLE_SIZE, MAX_FLOAT_CLASSES

if TYPE_CHECKING:
    from ray_embed.config import RunConfig
    from ray_embed.encoders.spec import Build

_INTERRUPTED = 130
_SUPERVISED_COMMANDS = ("run", "extract", "sweep", "reduce", "evaluate", "demo")

_json_option = option(
    "--json", "as_json", is_flag=True, help="Print machine-readable JSON instead of text."
)
_sample_option = option(
    "--sample",
    type=click.IntRange(min=2),
    default=DEFAULT_SAMPLE_SIZE,
    show_default=True,
    metavar="N",
    help="Maximum number of records to evaluate, sampled with a fixed seed and stratified by split "
    "and label.",
)
_labels_option = option(
    "--labels",
    type=click.Choice(["classes", "values"]),
    help="How to interpret numeric labels: as classes or as continuous values.",
    default_text="classes for integers and for whole-number floats with at most "
    f"{MAX_FLOAT_CLASSES} distinct values; values for other floats",
)


class _OrderedGroup(click.Group):
    """A group whose help lists the commands in the order of this module."""

    command_class = GroupedCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


@click.group(
    cls=_OrderedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success, 1 runtime failure, 2 invalid input, 130 interrupted.",
)
@click.version_option(__version__, prog_name="ray-embed")
def cli() -> None:
    """Embed images with an encoder and see how well its features cluster.

    `ray-embed run` writes features and labels to Parquet and builds a TensorBoard projector,
    `ray-embed view` opens the projector, and `ray-embed evaluate` measures the features.
    """


@cli.command(epilog=format_resume_note())
@add_run_options
def run(**options: Any) -> None:
    """Extract features and build the projector.

    To resume a run, use the same --out again; only missing shards are processed.
    """
    _run_pipeline(options, build_projector=True)


@cli.command(epilog=format_resume_note())
@add_run_options
def extract(**options: Any) -> None:
    """Extract features to Parquet without building the projector.

    To resume a run, use the same --out again. To build the projector, run `ray-embed reduce`.
    """
    _run_pipeline(options, build_projector=False)


@cli.command(epilog=format_resume_note())
@add_sweep_options
def sweep(**options: Any) -> None:
    """Run many encoders over the same images.

    Such as all epochs of a training. Every image is decoded once for all encoders. Each gets its
    own run folder, as from `ray-embed run`. To add an encoder or to resume, use the same --out
    again. An encoder that fails does not stop the others.
    """
    from ray_embed.cli.sweep import run_sweep

    run_sweep(_merge_options(options))


@cli.command()
@click.argument("run")
def reduce(run: str) -> None:
    """Build the projector of RUN from extracted features."""
    from ray_embed.projector.reduce import describe_limits
    from ray_embed.projector.reduce import reduce as merge

    points = merge(run)
    for line in describe_limits(run, points):
        click.echo(line, err=True)
    click.echo(f"{points} points in {run.rstrip('/')}/projector\nlook      ray-embed view {run}")


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@option(
    "--host",
    default="localhost",
    show_default=True,
    help="Address to listen on. Any address other than localhost makes the server reachable from "
    "other machines.",
)
@option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on.",
    default_text="TensorBoard's default port, or the next free port",
)
def view(runs: tuple[str, ...], host: str, port: int | None) -> None:
    """Open one or more runs in TensorBoard's projector.

    RUN is a run folder, or a folder that contains run folders. Press Ctrl-C to stop.
    """
    from ray_embed.projector.server import view as serve

    # An exception lets temporary copies and links be deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(runs, host, port, click.echo)
    except KeyboardInterrupt:
        # TensorBoard's threads keep running while Python ends, and may abort it.
        sys.stdout.flush()
        os._exit(_INTERRUPTED)


@cli.command()
@click.argument("run")
@option("--verify", is_flag=True, help="Read all files and check that none are damaged or missing.")
@_json_option
def status(run: str, verify: bool, as_json: bool) -> None:
    """Show the progress of a run and its rejected records.

    Exits with 1 if shards are missing or files are damaged.
    """
    from ray_embed.runs.status import read_status

    report = read_status(run, verify=verify)
    click.echo(json.dumps(report.to_json()) if as_json else "\n".join(report.lines()))
    if report.problems:
        sys.exit(1)


@cli.command()
@click.argument("run")
@option("--layer", metavar="NAME", help="Evaluate only this layer.", default_text="all")
@_sample_option
@_labels_option
@_json_option
@option(
    "--random-weights",
    is_flag=True,
    help="Also evaluate the same architecture with random weights, as a baseline. This embeds all "
    "records again, into RUN/random-weights.",
)
def evaluate(
    run: str,
    layer: str | None,
    sample: int,
    labels: Any,
    as_json: bool,
    random_weights: bool,
) -> None:
    """Measure how well the features predict labels and form clusters.

    Raw pixels are evaluated as a baseline. The results are also written to RUN/evaluation.json and
    shown by `ray-embed view`.
    """
    from ray_embed.analysis.evaluation.evaluate import evaluate as measure
    from ray_embed.analysis.evaluation.evaluate import select_outputs
    from ray_embed.analysis.evaluation.record import record
    from ray_embed.analysis.evaluation.report import format_evaluation
    from ray_embed.analysis.evaluation.to_json import evaluation_to_json
    from ray_embed.runs.reader import open_run

    # The run with random weights prints on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        reader = open_run(run)
        baseline = None
        if random_weights:
            from ray_embed.baseline import extract_baseline
            from ray_embed.runtime.warm_ray import Session

            select_outputs(reader, layer)
            with Session():
                baseline = open_run(extract_baseline(run).path)
        evaluations = measure(reader, layer, sample, baseline, labels)
    entries = {name: evaluation_to_json(evaluation) for name, evaluation in evaluations.items()}
    if as_json:
        click.echo(json.dumps(entries, ensure_ascii=False))
    else:
        tables = ("\n".join(format_evaluation(name, entry)) for name, entry in entries.items())
        click.echo("\n\n".join(tables))
    record(reader, entries)


@cli.command()
@click.argument("run")
@option("--layer", metavar="NAME", help="Layer to plot. Required if the run has several layers.")
@_labels_option
def plot(run: str, layer: str | None, labels: Any) -> None:
    """Plot 2-D maps of the features and the encoder's mistakes.

    Writes image files to RUN/plots. Requires matplotlib: pip install 'ray_embed[plots]'.
    """
    from ray_embed.analysis.plotting.plot import plot as draw

    draw(run, layer, click.echo, labels)


@cli.command()
@add_model_options
def layers(**options: Any) -> None:
    """List the layers and submodels of a model.

    Each line shows a layer and its output shape. Submodels come first, each with the --submodel
    option that selects it.
    """
    from ray_embed.config import make_config
    from ray_embed.encoders.tensorflow_setup import hide_training_warnings
    from ray_embed.pipeline import list_models_and_layers

    config = make_config({"sources": {"none": ""}, **_drop_unset(options)})
    # The user's code may print, too.
    with hide_training_warnings(), contextlib.redirect_stdout(sys.stderr):
        models, layers = list_models_and_layers(config)
    for name, shape in models.items():
        click.echo(f"{name}\t{_format_shape(shape) or '-'}\t--submodel {shlex.quote(name)}")
    for name, shape in layers.items():
        click.echo(f"{name}\t{_format_shape(shape)}")


def _format_shape(shape: tuple[int | None, ...]) -> str:
    sides = ", ".join("N" if side is None else str(side) for side in shape)
    return sides and f"({sides})"


@cli.command()
@option(
    "--sheet",
    heading="Preview",
    default="preview.png",
    show_default=True,
    metavar="FILE",
    help="Path of the contact sheet.",
)
@add_run_options
def preview(sheet: str, **options: Any) -> None:
    """Preview the preprocessed images before a long run.

    Prints the resolved settings and draws a contact sheet of a few records before and after
    preprocessing. Does not create a run folder.
    """
    from ray_embed.analysis.preview import preview as show
    from ray_embed.encoders.tensorflow_setup import hide_training_warnings

    with hide_training_warnings():
        show(_make_config(options), sheet, click.echo)


@cli.command()
@click.argument("runs", metavar="RUN RUN…", nargs=-1, required=True)
@option(
    "--layer",
    metavar="NAME",
    help="Compare only this layer of each run.",
    default_text="all layers, one column per layer",
)
@_sample_option
@_labels_option
@_json_option
@option(
    "--plot",
    metavar="FILE",
    help="Plot the measures of the runs, in the order given, to a .png or .svg file. Requires "
    "matplotlib: pip install 'ray_embed[plots]'.",
)
def compare(
    runs: tuple[str, ...],
    layer: str | None,
    sample: int,
    labels: Any,
    as_json: bool,
    plot: str | None,
) -> None:
    """Compare runs, or the layers of one run, on the same records.

    Prints the measures side by side, which differences are significant, and how similar the
    features are. Only records that all runs have in common are used.
    """
    from ray_embed.analysis.comparison.compare import compare as measure
    from ray_embed.analysis.comparison.plot import check_target, draw_comparison
    from ray_embed.analysis.comparison.report import format_comparison
    from ray_embed.analysis.comparison.to_json import comparison_to_json

    if plot:
        check_target(plot)
    comparison = measure(runs, layer, sample, lambda line: click.echo(line, err=True), labels)
    if plot:
        draw_comparison(comparison, plot, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(comparison_to_json(comparison)))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        click.echo("\n".join(format_comparison(comparison, width)))


@cli.command()
@option(
    "--out", default="runs/demo", show_default=True, metavar="RUN", help="Run folder to write to."
)
def demo(out: str) -> None:
    """Try ray_embed on handwritten digits.

    Trains a small auto-encoder, embeds the digits with its encoder, evaluates the features, and
    prints how to open the projector.
    """
    from ray_embed.cli.demo import demo as show

    show(out, click.echo)


def _run_pipeline(options: dict[str, Any], *, build_projector: bool) -> None:
    config = _make_config(options)
    is_supervised = bool(click.get_current_context().obj)
    with _start_building(config) if is_supervised else contextlib.nullcontext() as build:
        # This imports Ray, so it comes after the check of the options.
        with pause_garbage_collection():
            from ray_embed.pipeline import execute
            from ray_embed.runtime.warm_ray import Session

        session = Session()
        if build is not None:
            # Entered once more than left: a local Ray ends with this process, which then need not
            # wait for that.
            session.__enter__()
        # Ray prints messages about actors on stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr), session:
            outcome = execute(config, build_projector=build_projector, build=build)
    click.echo(outcome.summary())


@contextlib.contextmanager
def _start_building(config: "RunConfig") -> Iterator["Build | None"]:
    """Start the build process if the run starts Ray on this machine; else yield None."""
    from ray_embed.config import LOCAL, choose_ray_address
    from ray_embed.encoders.build_process import start_build_process

    if choose_ray_address(config.address) != LOCAL:
        yield None
        return
    with start_build_process(config.model) as build:
        yield build


def _make_config(options: dict[str, Any]) -> "RunConfig":
    from ray_embed.config import make_config

    return make_config(_merge_options(options))


def _merge_options(options: dict[str, Any]) -> dict[str, Any]:
    """Merge the command-line options over those of the YAML file."""
    from ray_embed.config import load_yaml

    file = options.pop("config")
    return {**(load_yaml(file) if file else {}), **_drop_unset(options)}


def _drop_unset(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, ())}


def main() -> None:
    """Run the command line and exit with 0, 1 (failure), 2 (invalid input) or 130 (interrupted)."""
    started = time.time()
    # A process that has imported Ray is somebody's own Python, which must not be forked.
    if (
        sys.argv[1:2]
        and sys.argv[1] in _SUPERVISED_COMMANDS
        and hasattr(os, "fork")
        and "ray" not in sys.modules
    ):
        from ray_embed.cli.supervisor import supervise

        with _exit_on_interrupt(started):
            supervise(partial(_run_command, started, True), partial(_report_lost_process, started))
    _run_command(started, False)


def _run_command(started: float, is_supervised: bool) -> NoReturn:
    # TensorFlow reads it when it is imported, here or in an actor.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _exit_on_interrupt(started):
            # Commands find the flag in their context.
            code = cli.main(standalone_mode=False, obj=is_supervised)
    except RayEmbedError as error:
        click.echo(f"ray-embed: {error}", err=True)
        if isinstance(error, RunError) and error.can_resume:
            _print_next_command(started)
        code = error.exit_code
    except OSError as error:
        # It concerns a file outside the run folder, such as a temporary one.
        click.echo(f"ray-embed: {error}", err=True)
        _print_next_command(started)
        code = 1
    except click.ClickException as error:
        error.show()
        code = 2
    sys.exit(code)


@contextlib.contextmanager
def _exit_on_interrupt(started: float) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, click.Abort, SystemExit) as error:
        # Ray turns SIGTERM into an exit with the signal's number.
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        click.echo("interrupted", err=True)
        _print_next_command(started)
        sys.exit(_INTERRUPTED)


def _report_lost_process(started: float, ending: str) -> int:
    click.echo(
        f"ray-embed: the process ended unexpectedly ({ending}); the machine may have run out of "
        "memory, or a Ray process may have been killed",
        err=True,
    )
    _print_next_command(started)
    return 1


def _print_next_command(started: float) -> None:
    from ray_embed.cli.resuming import suggest_next_command

    if line := suggest_next_command(cli, sys.argv[1:], started):
        click.echo(line, err=True)
