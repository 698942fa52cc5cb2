# SPDX-License-Identifier: Apache-2.0
"""The options of the command line, in the groups in which its help shows them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Grouped(click.Command):
    """A command whose help shows its options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section a group."""
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


def with_options(
    options: list[Callable[[_Function], _Function]],
) -> Callable[[_Function], _Function]:
    """Give a command's function these options, in this order."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SOURCES = "What to embed"
_MODEL = "Encoder"
_PIXELS = "Pixels"
_FEATURES = "Features"
_WORK = "Work"
_RESULT = "Result"

_source_options = [
    _option(
        _SOURCES, "--source", "sources", multiple=True, metavar="[SPLIT=]URI",
        help="A folder tree of images, a .csv/.tsv listing, an .npz file, or module:callable that "
        "gives a tf.data.Dataset or a sequence; files by path or URI (s3://…). Repeatable: "
        "each is a split, in the order given.",
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
    _option(
        _SOURCES, "--empty-label", type=click.Choice(["null", "keep"]),
        help="Whether an empty text label of a listing means no label, or is a class.  [null]",
    ),
    _option(_SOURCES, "--limit", type=int, help="Only the first N records of each source."),
]  # fmt: skip

MODEL_OPTIONS = [
    _option(
        _MODEL, "--model", metavar="M",
        help="A .keras or .h5 file, a SavedModel folder, the model.json of `to_json()` (with "
        "--weights), or module:callable giving a Keras model or an object that holds one.",
    ),
    _option(_MODEL, "--model-kwargs", metavar="JSON", help="Arguments of the callable."),
    _option(
        _MODEL, "--submodel", metavar="NAME",
        help="The encoder inside the model: an attribute or a layer that is a model itself, nested "
        "as outer.inner; `ray-embed layers` lists them.",
    ),
    _option(
        _MODEL, "--weights", metavar="W",
        help="A .weights.h5, .h5 or .keras file, or a TensorFlow checkpoint (prefix or folder); "
        "`random` for the initial ones of the model's layers, as a floor to compare with.",
    ),
    _option(
        _MODEL, "--tags", metavar="TAG,…",
        help="Tags of the graph to take from a SavedModel; '' for none.  [serve, or what fits]",
    ),
    _option(
        _MODEL, "--signature", metavar="NAME",
        help="Signature of a SavedModel to call.  [serving_default, or what fits]",
    ),
    _option(
        _MODEL, "--import", "imports", multiple=True, metavar="MODULE",
        help="A module with the custom layers, models and functions of a model file. Repeatable.",
    ),
    _option(
        _MODEL, "--image-size", metavar="H,W", help="Size images are resized to.  [the model's]"
    ),
]  # fmt: skip

_pixel_options = [
    _option(
        _PIXELS, "--resize", type=click.Choice(["stretch", "crop", "pad"]),
        help="How files and uint8 arrays are brought to the encoder's size: stretched, cropped to "
        "its aspect ratio, or padded with black to it.  [stretch]",
    ),
    _option(
        _PIXELS, "--crop-fraction", type=float, metavar="F",
        help="Instead of --resize, as torchvision and timm evaluate: resize the short side to the "
        "encoder's size / F, then cut out the center.",
    ),
    _option(
        _PIXELS, "--interpolation",
        type=click.Choice(["bilinear", "bicubic", "nearest", "area", "lanczos3", "lanczos5"]),
        help="[bilinear]",
    ),
    _option(
        _PIXELS, "--antialias", is_flag=True, default=None,
        help="Filter images that shrink, and round to whole levels, as Pillow does.",
    ),
    _option(
        _PIXELS, "--exif-orientation", is_flag=True, default=None,
        help="Turn JPEG images upright as their Exif data say. Keras does not.",
    ),
    _option(
        _PIXELS, "--channels", type=click.Choice(["repeat"]),
        help="Repeat the one channel of gray arrays for an encoder that takes three.",
    ),
    _option(
        _PIXELS, "--channel-order", type=click.Choice(["rgb", "bgr"]),
        help="Order in which the encoder takes the channels.  [rgb]",
    ),
    _option(
        _PIXELS, "--scale", type=click.Choice(["unit", "symmetric", "none"]),
        help="Pixels to [0,1], [-1,1], or as they are.  [unit; none for float arrays, and for "
        "encoders that rescale their input or take integers]",
    ),
    _option(
        _PIXELS, "--mean", metavar="M[,M,M]",
        help="Subtracted after scaling: one number, or one a channel.",
    ),
    _option(_PIXELS, "--std", metavar="S[,S,S]", help="Divided by, after --mean."),
    _option(
        _PIXELS, "--preprocess", metavar="MODULE:CALLABLE",
        help="Instead of --scale, --mean and --std: applied to float32 batches (N,H,W,C) from 0 to "
        "255; `keras:resnet50` is keras.applications.resnet50:preprocess_input.",
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
    _option(_WORK, "--actors", type=int,
            help="Started as there is room.  [one a GPU, else by the number of cores]"),
    _option(_WORK, "--gpus-per-actor", type=float, help="[1 where there are GPUs]"),
    _option(_WORK, "--cpus-per-actor", type=int, help="Also its threads.  [up to 4]"),
    _option(_WORK, "--address", help="Ray cluster.  [$RAY_ADDRESS, else a local Ray]"),
    _option(_WORK, "--shard-timeout", type=float, metavar="SECONDS",
            help="Restart an actor that has finished no shard for so long; stop if all actors have "
            "waited so long for a dataset to give its next shard."),
    _option(_WORK, "--max-attempts", type=int, help="Tries of a shard whose actor dies.  [3]"),
    _option(_WORK, "--max-rejects", type=int, help="Stop when more records are rejected."),
    _option(_WORK, "--max-pixels", type=int, help="Reject larger images.  [178956970]"),
]  # fmt: skip

_result_options = [
    _option(
        _RESULT, "--out", metavar="RUN",
        help="Run folder, a path or URI.  [runs/<model>-<weights>]",
    ),
    _option(_RESULT, "--overwrite", is_flag=True, default=None, help="Start the run folder anew."),
    _option(_RESULT, "--projector-limit", type=int, help="Points shown.  [100000]"),
    _option(
        _RESULT, "--config", metavar="YAML",
        help="Read options from a file: names with _, repeatable ones plural; the command line "
        "wins.",
    ),
]  # fmt: skip

RUN_OPTIONS = [
    *_source_options,
    *MODEL_OPTIONS,
    *_pixel_options,
    *_feature_options,
    *_work_options,
    *_result_options,
]
