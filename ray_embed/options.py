# SPDX-License-Identifier: Apache-2.0
"""Every option of a run: its name, type, default and help, in one place without heavy imports.

`RunConfig` inherits these fields and validates them. The command line, the YAML file and
`docs/cli.md` are made from them.
"""

import enum
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

from annotated_types import Ge, Gt, Le, MinLen

_Class = TypeVar("_Class", bound=type)

# Defaults that depend on the machine or on the data. They are read where they are applied, and by
# the help texts.
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 16, 128
MAX_CPU_THREADS = 4
SHARD_RECORDS = 512
SAMPLE_RECORDS = 10_000
MAX_FLOAT_CLASSES = 50

# The value of `weights` that initializes the model's layers with a fixed seed.
RANDOM = "random"

Pooling = Literal["gap", "gmp", "gem", "cls", "flatten", "none"]
Scale = Literal["unit", "symmetric", "none"]
Engine = Literal["auto", "tensorflow", "openvino"]
Precision = Literal["float32", "bfloat16"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "area", "lanczos3", "lanczos5"]
ChannelOrder = Literal["rgb", "bgr"]
LabelType = Literal["text", "int", "float"]
EmptyLabel = Literal["null", "keep"]
Channels = Literal["repeat"]

PositiveInt = Annotated[int, Gt(0)]


class Group(enum.Enum):
    """The headings under which the help shows the options."""

    DATA = "Data"
    ENCODER = "Encoder"
    PIXELS = "Pixels"
    FEATURES = "Features"
    RESOURCES = "Ray and resources"
    ROBUSTNESS = "Robustness"
    OUTPUT = "Output and projector"


class OnResume(enum.Enum):
    """How an option is compared with that of the run that is resumed."""

    #: What it leads to must be the same: the records, the weights, the shape of the features, ….
    SAME_EFFECT = enum.auto()
    #: Its value must be the same.
    SAME_VALUE = enum.auto()
    #: Its value must be the same. The run's identity has it only where it is not the default, so
    #: that a run begun before the option existed keeps its identity.
    SAME_VALUE_IF_SET = enum.auto()
    #: It may change. `run.json` keeps the latest value.
    MAY_CHANGE = enum.auto()
    #: It names or empties the run folder, so there is nothing to compare.
    NOT_COMPARED = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Option:
    """What the command line and the documentation say about an option.

    Attributes:
        group: the heading it belongs to.
        help: what it does and what its values mean.
        metavar: the placeholder of its value; None for that of its type.
        default: the default in words, where the field's own default does not say it.
        repeatable: whether the command line takes it several times, under its singular name.
        is_location: whether it is a path or URI, which a YAML file gives relative to its folder.
        on_resume: how it is compared with that of the run that is resumed.
    """

    group: Group
    help: str
    metavar: str | None = None
    default: str | None = None
    repeatable: bool = False
    is_location: bool = False
    on_resume: OnResume = OnResume.SAME_EFFECT


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _declare_fields(cls: _Class) -> _Class:
    """Let type checkers take a class's annotations for fields, as they do with a dataclass's."""
    return cls


@_declare_fields
class RunOptions:
    """The fields of `RunConfig`, in the order in which the help shows them."""

    sources: Annotated[
        dict[str, Any],
        MinLen(1),
        Option(
            group=Group.DATA,
            help="Images to embed: a folder of images (the first subfolder is the label), a .csv "
            "or .tsv listing, an .npz file, or module:callable that returns a tf.data.Dataset or "
            "a sequence. Paths may be URIs such as s3://bucket/valid. Repeat the option for more "
            "splits; their order is kept.",
            metavar="[SPLIT=]URI",
            repeatable=True,
        ),
    ]
    source_kwargs: Annotated[
        dict[str, dict[str, Any]],
        Option(
            group=Group.DATA,
            help="Arguments of module:callable sources, by split, such as "
            '\'{"valid": {"folder": "data"}}\'.',
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    path_column: Annotated[
        str, Option(group=Group.DATA, help="Column of a listing with the paths of the images.")
    ] = "path"
    label_column: Annotated[
        str, Option(group=Group.DATA, help="Column of a listing with the labels.")
    ] = "label"
    label_type: Annotated[
        LabelType,
        Option(
            group=Group.DATA,
            help="Type of the labels in a listing. `text` keeps 007 and NA as they are written.",
        ),
    ] = "text"
    empty_label: Annotated[
        EmptyLabel,
        Option(
            group=Group.DATA,
            help="What an empty text label in a listing means: no label (`null`), or a class of "
            "its own (`keep`).",
        ),
    ] = "null"
    limit: Annotated[
        PositiveInt | None,
        Option(
            group=Group.DATA,
            help="Embed only the first records of each source, to try things out.",
            metavar="N",
            default="all",
            on_resume=OnResume.SAME_VALUE,
        ),
    ] = None

    model: Annotated[
        Any,
        Option(
            group=Group.ENCODER,
            help="The encoder: a .keras or .h5 file, a SavedModel folder, a model.json written by "
            "`to_json()` (needs --weights), or module:callable that returns a Keras model or an "
            "object that holds one.",
            metavar="MODEL",
            is_location=True,
        ),
    ]
    model_kwargs: Annotated[
        dict[str, Any],
        Option(
            group=Group.ENCODER,
            help="Arguments of a module:callable model. Lists arrive as tuples.",
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    submodel: Annotated[
        str | None,
        Option(
            group=Group.ENCODER,
            help="The encoder inside the model: an attribute, or a layer that is itself a model, "
            "nested as outer.inner. `ray-embed layers` lists them.",
            metavar="NAME",
            default="the model itself",
        ),
    ] = None
    weights: Annotated[
        str | None,
        Option(
            group=Group.ENCODER,
            help="Weights to load into the model: a .weights.h5, .h5 or .keras file, or a "
            f"TensorFlow checkpoint (prefix or folder). `{RANDOM}` initializes the layers with a "
            "fixed seed, as a baseline to compare with.",
            metavar="WEIGHTS",
            default="those of the model",
            is_location=True,
        ),
    ] = None
    tags: Annotated[
        tuple[str, ...] | None,
        Option(
            group=Group.ENCODER,
            help="Tags of the graph to load from a SavedModel, separated by commas; '' for a "
            "graph without tags.",
            metavar="TAG,…",
            default="serve, else the graph that takes images",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    signature: Annotated[
        str | None,
        Option(
            group=Group.ENCODER,
            help="Signature of a SavedModel to call.",
            metavar="NAME",
            default="serving_default, else the signature that takes images",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    imports: Annotated[
        tuple[str, ...],
        Option(
            group=Group.ENCODER,
            help="Module with the custom layers, models and functions that a model file needs. "
            "Repeat the option for more modules.",
            metavar="MODULE",
            repeatable=True,
        ),
    ] = ()
    image_size: Annotated[
        tuple[PositiveInt, PositiveInt] | None,
        Option(
            group=Group.ENCODER,
            help="Height and width of the images that the encoder gets, in pixels.",
            metavar="H,W",
            default="the model's input size",
        ),
    ] = None

    resize: Annotated[
        Resize | None,
        Option(
            group=Group.PIXELS,
            help="How to bring images to the encoder's size: `stretch` them, `crop` them to its "
            "aspect ratio, or `pad` them with black to it.",
            default="stretch",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    crop_fraction: Annotated[
        Annotated[float, Gt(0), Le(1)] | None,
        Option(
            group=Group.PIXELS,
            help="Resize the short side to the encoder's size / FRACTION, then cut out the "
            "center, as torchvision and timm evaluate. Use it instead of --resize.",
            metavar="FRACTION",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    interpolation: Annotated[
        Interpolation,
        Option(
            group=Group.PIXELS,
            help="How to compute pixels when images are resized.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = "bilinear"
    antialias: Annotated[
        bool,
        Option(
            group=Group.PIXELS,
            help="Filter images that shrink, and round to whole levels, as Pillow does.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = False
    exif_orientation: Annotated[
        bool,
        Option(
            group=Group.PIXELS,
            help="Turn JPEG images upright as their Exif data say. Keras does not do so.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = False
    channels: Annotated[
        Channels | None,
        Option(
            group=Group.PIXELS,
            help="`repeat` makes three channels of gray arrays, for an encoder that takes RGB.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    channel_order: Annotated[
        ChannelOrder,
        Option(
            group=Group.PIXELS,
            help="Order of the channels that the encoder takes.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = "rgb"
    scale: Annotated[
        Scale | None,
        Option(
            group=Group.PIXELS,
            help="Range of the pixels that the encoder gets: `unit` is [0, 1], `symmetric` is "
            "[-1, 1], `none` leaves them as they are.",
            default="unit; none for float arrays, and for encoders that rescale their input or "
            "take integers",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...],
        Option(
            group=Group.PIXELS,
            help="Subtract this after --scale: one number, or one for each channel.",
            metavar="MEAN[,…]",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        Option(
            group=Group.PIXELS,
            help="Divide by this after --mean: one number, or one for each channel.",
            metavar="STD[,…]",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = ()
    preprocess: Annotated[
        Any,
        Option(
            group=Group.PIXELS,
            help="Function to apply to float32 batches (N, H, W, C) of pixels from 0 to 255, "
            "instead of --scale, --mean and --std. `keras:resnet50` is "
            "keras.applications.resnet50:preprocess_input.",
            metavar="MODULE:CALLABLE",
        ),
    ] = None

    layers: Annotated[
        tuple[str, ...],
        Option(
            group=Group.FEATURES,
            help="Layer whose output is taken as features, nested as outer/inner. `ray-embed "
            "layers` lists them. Repeat the option for more layers.",
            metavar="NAME",
            default="the model's output",
            repeatable=True,
        ),
    ] = ()
    pool: Annotated[
        Pooling | None,
        Option(
            group=Group.FEATURES,
            help="How a layer's output becomes one vector: average (`gap`), maximum (`gmp`) or "
            "generalized mean (`gem`) over positions or tokens, the first token (`cls`), all "
            "values (`flatten`), or the vector as it is (`none`).",
            default="gap for maps and tokens, none for vectors",
        ),
    ] = None
    engine: Annotated[
        Engine,
        Option(
            group=Group.FEATURES,
            help="What runs the encoder. `auto` takes the first that gives the numbers of the "
            "plain model.",
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Option(
            group=Group.FEATURES,
            help="Precision of the computation. `bfloat16` is faster on some hardware, and less "
            "exact.",
            on_resume=OnResume.SAME_VALUE,
        ),
    ] = "float32"

    batch_size: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Images that the encoder gets at once.",
            metavar="N",
            default=f"{CPU_BATCH_SIZE}; {GPU_BATCH_SIZE} on GPUs",
        ),
    ] = None
    shard_size: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Records of a shard, which is the unit of work of an actor and of what is "
            "repeated after a failure.",
            metavar="N",
            default=f"{SHARD_RECORDS}; less for large arrays",
        ),
    ] = None
    actors: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Most actors to start. Each starts once the cluster has room for it.",
            metavar="N",
            default="one for each GPU; without GPUs as many as the cores allow",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    cpus_per_actor: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Cores of an actor, and the threads it computes with.",
            metavar="N",
            default=f"up to {MAX_CPU_THREADS}; with GPUs their share of the cores",
        ),
    ] = None
    gpus_per_actor: Annotated[
        Annotated[float, Ge(0)] | None,
        Option(
            group=Group.RESOURCES,
            help="GPUs of an actor: a whole number, or a part of one. 0 computes on CPUs.",
            metavar="X",
            default="1 where there are GPUs",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    address: Annotated[
        str | None,
        Option(
            group=Group.RESOURCES,
            help="Ray cluster to work on, such as `auto` or host:6379. `local` starts a Ray on "
            "this machine.",
            metavar="ADDRESS",
            default="$RAY_ADDRESS, else local",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None

    shard_timeout: Annotated[
        Annotated[float, Gt(0)] | None,
        Option(
            group=Group.ROBUSTNESS,
            help="Restart an actor that has finished no shard for this many seconds. Stop the "
            "run if all actors have waited that long for the next shard of a dataset.",
            metavar="SECONDS",
            default="no limit",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    max_attempts: Annotated[
        PositiveInt,
        Option(
            group=Group.ROBUSTNESS,
            help="Attempts on a shard whose actor dies. After them its records are tried one by "
            "one, and a record that ends this many actors is rejected.",
            metavar="N",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = 3
    max_rejects: Annotated[
        Annotated[int, Ge(0)] | None,
        Option(
            group=Group.ROBUSTNESS,
            help="Stop the run when more records than this are rejected.",
            metavar="N",
            default="no limit",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    max_pixels: Annotated[
        PositiveInt,
        Option(
            group=Group.ROBUSTNESS,
            help="Reject images with more pixels than this.",
            metavar="N",
            on_resume=OnResume.SAME_VALUE,
        ),
    ] = 178_956_970

    out: Annotated[
        str | None,
        Option(
            group=Group.OUTPUT,
            help="Run folder to write to, a path or URI. If it holds the same run, that run is "
            "resumed.",
            metavar="RUN",
            default="runs/<model>-<weights>",
            is_location=True,
            on_resume=OnResume.NOT_COMPARED,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        Option(
            group=Group.OUTPUT,
            help="Delete the run in the run folder and start again.",
            on_resume=OnResume.NOT_COMPARED,
        ),
    ] = False
    projector_limit: Annotated[
        PositiveInt,
        Option(
            group=Group.OUTPUT,
            help="Most points that TensorBoard's page shows. Of more, it shows a sample.",
            metavar="N",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = 100_000


def _read_options() -> dict[str, Option]:
    options = {}
    for name, annotation in RunOptions.__annotations__.items():
        (options[name],) = (item for item in annotation.__metadata__ if isinstance(item, Option))
    return options


OPTIONS: dict[str, Option] = _read_options()


def get_value_type(name: str) -> Any:
    """Return the type of an option's value, without None and constraints."""
    return _strip(RunOptions.__annotations__[name])


def _strip(annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _strip(annotation.__origin__)
    if origin in (Union, UnionType):
        return _strip(next(item for item in get_args(annotation) if item is not NoneType))
    return annotation


def get_default(name: str) -> Any:
    """Return the default of an option; None for one that is needed."""
    return getattr(RunOptions, name, None)


def format_flag(name: str) -> str:
    """Return the option of the command line for a field, such as ``--batch-size``."""
    singular = name.removesuffix("s") if OPTIONS[name].repeatable else name
    return f"--{singular.replace('_', '-')}"


def takes_json(name: str) -> bool:
    """Return whether the command line takes an option as a JSON object."""
    return get_origin(get_value_type(name)) is dict and not OPTIONS[name].repeatable


def describe_default(name: str) -> str | None:
    """Return the default of an option as the help shows it; None if there is none to show."""
    value = get_default(name)
    shown = value not in (None, False) and not isinstance(value, (tuple, dict))
    return OPTIONS[name].default or (str(value) if shown else None)


def find_options(*ways: OnResume) -> list[str]:
    """Return the names of the options that are compared in one of these ways on resuming."""
    return [name for name, option in OPTIONS.items() if option.on_resume in ways]
