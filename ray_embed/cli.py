# SPDX-License-Identifier: Apache-2.0
"""The command line. TensorFlow and Ray are imported only by the commands that work with them."""

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import click

from ray_embed._version import __version__
from ray_embed.errors import RayEmbedError, RunError

_Function = TypeVar("_Function", bound=Callable[..., Any])

_INTERRUPTED = 130
_GUARDED = ("run", "extract", "reduce", "demo")


class _Grouped(click.Command):
    """A command whose help shows its options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                group = getattr(parameter, "group", "Other")
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


class _Option(click.Option):
    """An option that belongs to a group of the help."""

    def __init__(self, *args: Any, group: str = "Other", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def _option(group: str, *names: str, **kwargs: Any) -> Callable[[_Function], _Function]:
    return click.option(*names, cls=_Option, group=group, **kwargs)


def _with(options: list[Callable[[_Function], _Function]]) -> Callable[[_Function], _Function]:
    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SOURCES = "What to embed"
_MODEL = "Encoder"
_FEATURES = "Features"
_WORK = "Work"
_RESULT = "Result"

_source_options = [
    _option(
        _SOURCES, "--source", "sources", multiple=True, metavar="[SPLIT=]URI",
        help="A folder tree of images, a .csv/.tsv listing, an .npz file, or module:callable that "
        "gives a tf.data.Dataset or a sequence. Repeatable: each is a split, in the order given.",
    ),
    _option(
        _SOURCES, "--source-kwargs", metavar="JSON",
        help='Arguments of callables, by split: \'{"valid": {"folder": "data"}}\'.',
    ),
    _option(_SOURCES, "--path-column", help="Listing column with the paths.  [path]"),
    _option(_SOURCES, "--label-column", help="Listing column with the labels.  [label]"),
    _option(
        _SOURCES, "--label-type", type=click.Choice(["text", "int", "float"]),
        help="Type of a listing's labels.  [text]",
    ),
    _option(_SOURCES, "--limit", type=int, help="Only the first N records of each source."),
]  # fmt: skip

_model_options = [
    _option(
        _MODEL, "--model", metavar="M",
        help="A .keras or .h5 file, a SavedModel folder, or module:callable giving a Keras model "
        "or an object that holds one.",
    ),
    _option(_MODEL, "--model-kwargs", metavar="JSON", help="Arguments of the callable."),
    _option(_MODEL, "--submodel", metavar="NAME", help="The attribute that holds the encoder."),
    _option(
        _MODEL, "--weights", metavar="W",
        help="A .weights.h5, .h5 or .keras file, or a TensorFlow checkpoint (prefix or folder).",
    ),
    _option(
        _MODEL, "--import", "imports", multiple=True, metavar="MODULE",
        help="A module that registers custom layers. Repeatable.",
    ),
    _option(
        _MODEL, "--image-size", metavar="H,W", help="Size images are resized to.  [the model's]"
    ),
]  # fmt: skip

_feature_options = [
    _option(
        _FEATURES, "--layer", "layers", multiple=True, metavar="NAME",
        help="Layer to take, nested as outer/inner; `ray-embed layers` lists them. Repeatable.  "
        "[the model's output]",
    ),
    _option(
        _FEATURES, "--pool", type=click.Choice(["gap", "gmp", "gem", "cls", "flatten", "none"]),
        help="Pooling.  [gap for maps and tokens, none for vectors]",
    ),
    _option(
        _FEATURES, "--scale", type=click.Choice(["unit", "symmetric", "none"]),
        help="Pixels to [0,1], [-1,1], or as they are.  [unit; none for float arrays]",
    ),
    _option(
        _FEATURES, "--preprocess", metavar="MODULE:CALLABLE",
        help="Instead of --scale: applied to float32 batches (N,H,W,C).",
    ),
    _option(
        _FEATURES, "--engine", type=click.Choice(["auto", "tensorflow", "openvino"]),
        help="What runs the encoder.  [auto: the first that agrees with the plain model]",
    ),
    _option(
        _FEATURES, "--precision", type=click.Choice(["float32", "bfloat16"]), help="[float32]"
    ),
]  # fmt: skip

_work_options = [
    _option(_WORK, "--batch-size", type=int, help="Images a batch.  [16; 128 on GPUs]"),
    _option(_WORK, "--shard-size", type=int, help="Records a shard, redone if it stops.  [512]"),
    _option(_WORK, "--actors", type=int, help="[one a GPU, else by the number of cores]"),
    _option(_WORK, "--gpus-per-actor", type=float, help="[1 where there are GPUs]"),
    _option(_WORK, "--cpus-per-actor", type=int, help="Also its threads.  [up to 4]"),
    _option(_WORK, "--address", help="Ray cluster.  [$RAY_ADDRESS, else a local Ray]"),
    _option(_WORK, "--shard-timeout", type=float, metavar="SECONDS",
            help="Start an actor anew that has finished nothing for so long."),
    _option(_WORK, "--max-attempts", type=int, help="Tries of a shard whose actor dies.  [3]"),
    _option(_WORK, "--max-rejects", type=int, help="Stop when more records are rejected."),
    _option(_WORK, "--max-pixels", type=int, help="Reject larger images.  [178956970]"),
]  # fmt: skip

_result_options = [
    _option(_RESULT, "--out", metavar="RUN", help="Run folder.  [runs/<model>-<weights>]"),
    _option(_RESULT, "--overwrite", is_flag=True, default=None, help="Start the run folder anew."),
    _option(_RESULT, "--projector-limit", type=int, help="Points shown.  [100000]"),
    _option(
        _RESULT, "--config", metavar="YAML",
        help="Read options from a file: names with _, repeatable ones plural; the command line "
        "wins.",
    ),
]  # fmt: skip

_run_options = [
    *_source_options,
    *_model_options,
    *_feature_options,
    *_work_options,
    *_result_options,
]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ray-embed")
def cli() -> None:
    """See how an image encoder's features cluster.

    `ray-embed run` embeds images with an encoder, writes features and labels to Parquet, and
    prepares TensorBoard's projector; `ray-embed view` opens it.
    """


@cli.command(cls=_Grouped)
@_with(_run_options)
def run(**options: Any) -> None:
    """Extract features, then merge them for the projector; again on the same --out: the rest."""
    _execute(options, and_reduce=True)


@cli.command(cls=_Grouped)
@_with(_run_options)
def extract(**options: Any) -> None:
    """Write the Parquet parts only."""
    _execute(options, and_reduce=False)


@cli.command()
@click.argument("run")
def reduce(run: str) -> None:
    """Merge what `extract` wrote into RUN/projector."""
    from ray_embed.filesystem import Folder
    from ray_embed.reducer import reduce as merge
    from ray_embed.reducer import unseen

    points = merge(run)
    for line in unseen(Folder.at(run), points):
        click.echo(line, err=True)
    click.echo(f"{points} points in {run.rstrip('/')}/projector\nlook      ray-embed view {run}")


@cli.command()
@click.argument("run")
@click.option("--host", default="localhost", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, help="[the first free one from 6006 on]")
def view(run: str, host: str, port: int | None) -> None:
    """Open TensorBoard on a run."""
    from ray_embed.view import view as serve

    try:
        serve(run, host, port, click.echo)
    except KeyboardInterrupt:
        # TensorBoard's threads go on while Python ends, and may abort it.
        sys.stdout.flush()
        os._exit(_INTERRUPTED)


@cli.command()
@click.argument("run")
@click.option("--verify", is_flag=True, help="Read everything and say whether it is sound.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(run: str, verify: bool, as_json: bool) -> None:
    """Say what is done of a run, and what was rejected."""
    from ray_embed.status import status as look

    found = look(run, verify=verify)
    click.echo(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))
    if found.problems:
        sys.exit(1)


@cli.command(cls=_Grouped)
@_with(_model_options)
def layers(**options: Any) -> None:
    """List the layers that --layer accepts, with their output shapes."""
    from ray_embed.config import make_config
    from ray_embed.pipeline import layers as shapes

    config = make_config({"sources": {"none": ""}, **_given(options)})
    for name, shape in shapes(config).items():
        click.echo(f"{name}\t({', '.join('N' if side is None else str(side) for side in shape)})")


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="Run folder.")
def demo(out: str) -> None:
    """Train a small auto-encoder on digits, embed them, and say how to look."""
    from ray_embed.demo import demo as show

    show(out, click.echo)


def _execute(options: dict[str, Any], *, and_reduce: bool) -> None:
    from ray_embed.config import load_yaml, make_config

    file = options.pop("config")
    config = make_config({**(load_yaml(file) if file else {}), **_given(options)})
    # Ray is imported with this, so only when the options are right.
    from ray_embed.pipeline import execute

    # Ray prints what happens to actors on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        outcome = execute(config, and_reduce=and_reduce)
    click.echo(outcome.summary())


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
    # Where Ray is imported already, this is somebody's Python, which is not to be copied.
    if (
        sys.argv[1:2]
        and sys.argv[1] in _GUARDED
        and hasattr(os, "fork")
        and "ray" not in sys.modules
    ):
        from ray_embed.guard import guarded

        with _interrupts_said():
            guarded(_main, _abandoned)
    _main()


def _main() -> NoReturn:
    # Read by TensorFlow when it is imported, here or in an actor.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _interrupts_said():
            code = cli.main(standalone_mode=False)
    except RayEmbedError as error:
        click.echo(f"ray-embed: {error}", err=True)
        if isinstance(error, RunError) and error.goes_on:
            _say_how_to_go_on()
        code = error.exit_code
    except OSError as error:
        # Of a file that is none of the run folder's: a temporary one, say.
        click.echo(f"ray-embed: {error}", err=True)
        _say_how_to_go_on()
        code = 1
    except click.ClickException as error:
        error.show()
        code = 2
    sys.exit(code)


@contextlib.contextmanager
def _interrupts_said() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, click.Abort, SystemExit) as error:
        # Ray turns SIGTERM into an exit by its number.
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        click.echo(f"interrupted; finished shards are kept; go on with: {_command()}", err=True)
        sys.exit(_INTERRUPTED)


def _abandoned(how: str) -> int:
    click.echo(
        f"ray-embed: the program was ended ({how}) without a word: one of Ray's processes may have "
        "been killed, or the memory was full",
        err=True,
    )
    _say_how_to_go_on()
    return 1


def _say_how_to_go_on() -> None:
    click.echo(f"what is finished is kept; go on with: {_command()}", err=True)


def _command() -> str:
    """Give the command that goes on: the same one, but never to start anew, nor with a password."""
    from ray_embed.uri import without_credentials

    given = [
        without_credentials(argument, "***@")
        for argument in sys.argv[1:]
        if argument != "--overwrite"
    ]
    command = shlex.join(["ray-embed", *given])
    return f"{command} (with no overwrite in the file)" if "--config" in command else command
