# SPDX-License-Identifier: Apache-2.0
"""All options of a run, with name, type, default and help, in one place and without heavy imports.

`RunConfig` inherits and validates these fields. The command line, the YAML keys and `docs/cli.md`
are generated from them.
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
DEFAULT_SHARD_SIZE = 512
DEFAULT_SAMPLE_SIZE = 10_000
MAX_FLOAT_CLASSES = 50

# Options that decide together how pixels become values, and how images are resized.
VALUE_OPTIONS = ("preprocess", "scale", "mean", "std")
RESIZE_OPTIONS = ("resize", "crop_fraction")

# The value of `weights` that initializes the model's layers with a fixed seed.
RANDOM = "random"

Pooling = Literal["gap", "gmp", "gem", "cls", "flatten", "none"]
Scale = Literal["unit", "symmetric", "none"]
Engine = Literal["auto", "tensorflow", "openvino", "onnxruntime", "torch"]
Precision = Literal["float32", "bfloat16"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "area", "lanczos3", "lanczos5"]
ChannelOrder = Literal["rgb", "bgr"]
LabelType = Literal["text", "int", "float", "onehot", "multihot"]
EmptyLabel = Literal["null", "keep"]
Channels = Literal["repeat"]
Depth = Literal[8, 16]
Pages = Literal["first", "all"]
DecodeScale = Literal["auto"]
JpegDct = Literal["fast", "accurate"]
CropCorner = Literal["round", "floor"]

PositiveInt = Annotated[int, Gt(0)]


class Group(enum.Enum):
    """The option groups of the help, with their headings."""

    DATA = "Data"
    ENCODER = "Encoder"
    PIXELS = "Pixels"
    FEATURES = "Features"
    RESOURCES = "Ray and resources"
    ROBUSTNESS = "Robustness"
    OUTPUT = "Output and projector"


class OnResume(enum.Enum):
    """How an option is compared with the original run on resume."""

    #: The option may differ if its effect is the same (the records, the weights, the feature shape,
    #: …).
    SAME_EFFECT = enum.auto()
    #: Its value must be the same.
    SAME_VALUE = enum.auto()
    #: Its value must be the same. The run's identity has it only where it is not the default, so
    #: that a run begun before the option existed keeps its identity.
    SAME_VALUE_IF_SET = enum.auto()
    #: The value may change; `run.json` stores the latest one.
    MAY_CHANGE = enum.auto()
    #: Not compared, because it selects or clears the run folder.
    NOT_COMPARED = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Option:
    """How an option appears on the command line and in the documentation.

    Attributes:
        group: the group it is listed in.
        help: the help text.
        metavar: the placeholder for its value; None to derive it from the type.
        default: the default in words, if the field's default value does not show it.
        repeatable: whether the command-line option can be repeated (its name is then singular).
        is_location: whether it is a path or URI; in a YAML file, paths are relative to the file.
        on_resume: how it is compared when a run is resumed.
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
    """The fields of `RunConfig`, in help order."""

    sources: Annotated[
        dict[str, Any],
        MinLen(1),
        Option(
            group=Group.DATA,
            help="Images to embed: a folder (the first subfolder is the label), a .csv, .tsv or "
            ".jsonl listing, .parquet, .tar, .tfrecord, .npz, .npy or .h5 files, a folder written "
            "by Hugging Face datasets or TensorFlow Datasets, tfds:NAME, hf:NAME, or a "
            "module:callable that returns a tf.data.Dataset, a sequence or an iterable. Paths can "
            "be URIs, such as s3://bucket/valid. Repeat for more splits; the first one is the "
            "reference for evaluation.",
            metavar="[SPLIT=]URI",
            repeatable=True,
        ),
    ]
    source_kwargs: Annotated[
        dict[str, dict[str, Any]],
        Option(
            group=Group.DATA,
            help="Keyword arguments for module:callable sources, by split, such as "
            '\'{"valid": {"folder": "data"}}\'.',
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    splits_from_column: Annotated[
        str | None,
        Option(
            group=Group.DATA,
            help="Listing column that names the split of each row, such as train or test. Give "
            "one source.",
            metavar="COLUMN",
            default="all rows are one split",
        ),
    ] = None
    splits_from_folders: Annotated[
        bool,
        Option(
            group=Group.DATA,
            help="Make each subfolder of the source a split, such as train or test. Labels are "
            "the folders below it. Give one source.",
        ),
    ] = False
    image_column: Annotated[
        str | None,
        Option(
            group=Group.DATA,
            help="Column, array or feature with the images, for sources that have several.",
            metavar="COLUMN",
            default="the one with images",
        ),
    ] = None
    key_column: Annotated[
        str | None,
        Option(
            group=Group.DATA,
            help="Column, field or feature with the keys of the records.",
            metavar="COLUMN",
            default="the path of the image, else file and row",
        ),
    ] = None
    path_column: Annotated[
        str, Option(group=Group.DATA, help="Listing column with the image paths.")
    ] = "path"
    label_column: Annotated[
        str,
        Option(
            group=Group.DATA,
            help="Column, field, array or feature with the labels.",
            metavar="COLUMN",
        ),
    ] = "label"
    label_type: Annotated[
        LabelType,
        Option(
            group=Group.DATA,
            help="Type of the labels in a listing, where `text` keeps values such as 007 and NA as "
            "written. In arrays and datasets, `onehot` and `multihot` take vectors as labels: the "
            "label is the index of the 1, or the list of the indices of all 1s.",
        ),
    ] = "text"
    empty_label: Annotated[
        EmptyLabel,
        Option(
            group=Group.DATA,
            help="How to treat empty text labels in a listing: as missing (`null`) or as a class "
            "of their own (`keep`).",
        ),
    ] = "null"
    pages: Annotated[
        Pages,
        Option(
            group=Group.DATA,
            help="Pages to take of the TIFF files in a folder: the `first`, or `all`, each as a "
            "record of its own.",
        ),
    ] = "first"
    limit: Annotated[
        PositiveInt | None,
        Option(
            group=Group.DATA,
            help="Embed only the first N records of each source, for quick tests.",
            metavar="N",
            default="all",
            on_resume=OnResume.SAME_VALUE,
        ),
    ] = None

    model: Annotated[
        Any,
        Option(
            group=Group.ENCODER,
            help="The encoder: a .keras, .h5, .onnx or .pt2 file, a SavedModel folder, a "
            "model.json from `to_json()` (requires --weights), keras:NAME for an architecture of "
            "keras.applications with its ImageNet weights, keras_hub:PRESET or the folder of a "
            "preset, timm:NAME or a folder that timm wrote, open_clip:NAME/PRETRAINED or a folder "
            "that open_clip wrote, hf:NAME or a folder that transformers wrote, or a "
            "module:callable that returns a Keras model, an object that contains one, or a PyTorch "
            "module.",
            metavar="MODEL",
            is_location=True,
        ),
    ]
    model_kwargs: Annotated[
        dict[str, Any],
        Option(
            group=Group.ENCODER,
            help="Keyword arguments for a module:callable model. JSON lists become tuples.",
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    submodel: Annotated[
        str | None,
        Option(
            group=Group.ENCODER,
            help="Use only this part of the model as the encoder: an attribute, or a layer that is "
            "itself a model; nested ones are written outer.inner. See `ray-embed layers`.",
            metavar="NAME",
            default="the model itself",
        ),
    ] = None
    weights: Annotated[
        str | None,
        Option(
            group=Group.ENCODER,
            help="Weights to load into the model: a .weights.h5, .h5 or .keras file, or a "
            "TensorFlow checkpoint (prefix or folder); for a PyTorch module, a state dict. "
            f"`{RANDOM}` initializes the layers with a fixed seed, as a baseline to compare with.",
            metavar="WEIGHTS",
            default="the model's own weights",
            is_location=True,
        ),
    ] = None
    tags: Annotated[
        tuple[str, ...] | None,
        Option(
            group=Group.ENCODER,
            help="Comma-separated tags of the SavedModel graph to load; '' for a graph without "
            "tags.",
            metavar="TAG,…",
            default="serve if present, otherwise the graph that takes images",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    signature: Annotated[
        str | None,
        Option(
            group=Group.ENCODER,
            help="SavedModel signature to call.",
            metavar="NAME",
            default="serving_default if present, otherwise the signature that takes images",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    imports: Annotated[
        tuple[str, ...],
        Option(
            group=Group.ENCODER,
            help="Module to import for custom layers, models and functions that the model file "
            "needs. Can be repeated.",
            metavar="MODULE",
            repeatable=True,
        ),
    ] = ()
    image_size: Annotated[
        tuple[PositiveInt, PositiveInt] | None,
        Option(
            group=Group.ENCODER,
            help="Height and width of the encoder's input, in pixels.",
            metavar="H,W",
            default="the model's input size",
        ),
    ] = None

    resize: Annotated[
        Resize | None,
        Option(
            group=Group.PIXELS,
            help="How to fit images to the encoder's input size: `stretch`, center `crop`, or "
            "`pad` with black.",
            default="stretch",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    crop_fraction: Annotated[
        Annotated[float, Gt(0), Le(1)] | None,
        Option(
            group=Group.PIXELS,
            help="Resize the short side to the input size / FRACTION, then center crop, as "
            "torchvision and timm do for evaluation. Replaces --resize.",
            metavar="FRACTION",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    crop_corner: Annotated[
        CropCorner,
        Option(
            group=Group.PIXELS,
            help="Corner of the crop of --crop-fraction if an odd number of pixels is cut off: "
            "`round` to the even pixel, as torchvision and timm do, or `floor`, as transformers "
            "does.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = "round"
    interpolation: Annotated[
        Interpolation,
        Option(
            group=Group.PIXELS,
            help="Interpolation method for resizing.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = "bilinear"
    antialias: Annotated[
        bool,
        Option(
            group=Group.PIXELS,
            help="Antialias when downscaling and round to integers, like Pillow.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = False
    exif_orientation: Annotated[
        bool,
        Option(
            group=Group.PIXELS,
            help="Apply the EXIF orientation of JPEG, WebP, TIFF and AVIF images. Keras does not.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = False
    depth: Annotated[
        Depth,
        Option(
            group=Group.PIXELS,
            help=(
                "Bits per channel to which image files are decoded. At the larger depth, pixels "
                "are from 0 to 65535 instead of 0 to 255, and --scale takes this into account."
            ),
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = 8
    decode_scale: Annotated[
        DecodeScale | None,
        Option(
            group=Group.PIXELS,
            help="`auto` decodes JPEG files at a fraction of their size, the smallest one that is "
            "at least the encoder's input. This is faster for large photos, and the pixels differ "
            "from those of Keras.",
            default="full size",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    jpeg_dct: Annotated[
        JpegDct,
        Option(
            group=Group.PIXELS,
            help="Method to decode JPEG files: `fast` gives the pixels of TensorFlow and Keras, "
            "`accurate` those of Pillow and torchvision, which differ by a few levels.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = "fast"
    channels: Annotated[
        Channels | None,
        Option(
            group=Group.PIXELS,
            help="`repeat` converts grayscale arrays to three channels for RGB encoders.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = None
    channel_order: Annotated[
        ChannelOrder,
        Option(
            group=Group.PIXELS,
            help="Channel order that the encoder expects.",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = "rgb"
    scale: Annotated[
        Scale | None,
        Option(
            group=Group.PIXELS,
            help="Pixel range of the encoder's input: `unit` is [0, 1], `symmetric` is [-1, 1], "
            "`none` does not scale.",
            default="unit; none for float arrays, and for encoders that rescale their input or "
            "take integers",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...],
        Option(
            group=Group.PIXELS,
            help="Mean to subtract after --scale: one number, or one per channel.",
            metavar="MEAN[,…]",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        Option(
            group=Group.PIXELS,
            help="Standard deviation to divide by after --mean: one number, or one per channel.",
            metavar="STD[,…]",
            on_resume=OnResume.SAME_VALUE_IF_SET,
        ),
    ] = ()
    preprocess: Annotated[
        Any,
        Option(
            group=Group.PIXELS,
            help="Function applied to float32 batches (N, H, W, C) with pixels from 0 to 255, "
            "instead of --scale, --mean and --std. `keras:NAME` is short for "
            "keras.applications.NAME:preprocess_input, such as `keras:resnet50`.",
            metavar="MODULE:CALLABLE",
        ),
    ] = None

    layers: Annotated[
        tuple[str, ...],
        Option(
            group=Group.FEATURES,
            help="Layer to extract features from; nested layers are written outer/inner. For ONNX, "
            "any tensor. See `ray-embed layers`. Can be repeated.",
            metavar="NAME",
            default="the model's output",
            repeatable=True,
        ),
    ] = ()
    pool: Annotated[
        Pooling | None,
        Option(
            group=Group.FEATURES,
            help="How to reduce a layer's output to one vector: average (`gap`), maximum (`gmp`) "
            "or generalized mean (`gem`) over positions or tokens, first token (`cls`), all values "
            "(`flatten`), or unchanged (`none`).",
            default="gap for maps and tokens, none for vectors",
        ),
    ] = None
    engine: Annotated[
        Engine,
        Option(
            group=Group.FEATURES,
            help="Inference engine. `auto` selects the first engine whose features match those of "
            "the original model.",
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Option(
            group=Group.FEATURES,
            help="Numerical precision. `bfloat16` is faster on some hardware, but less accurate.",
            on_resume=OnResume.SAME_VALUE,
        ),
    ] = "float32"

    batch_size: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Number of images per batch.",
            metavar="N",
            default=f"{CPU_BATCH_SIZE}; {GPU_BATCH_SIZE} on GPUs",
        ),
    ] = None
    shard_size: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Number of records per shard. A shard is the unit of work and of retries.",
            metavar="N",
            default=f"{DEFAULT_SHARD_SIZE}; fewer for large arrays",
        ),
    ] = None
    actors: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="Maximum number of actors. Actors start as soon as the cluster has resources for "
            "them.",
            metavar="N",
            default="one per GPU; without GPUs, as many as fit on the cores",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    cpus_per_actor: Annotated[
        PositiveInt | None,
        Option(
            group=Group.RESOURCES,
            help="CPU cores, and compute threads, per actor.",
            metavar="N",
            default=f"up to {MAX_CPU_THREADS}; with GPUs, an equal share of the node's cores",
        ),
    ] = None
    gpus_per_actor: Annotated[
        Annotated[float, Ge(0)] | None,
        Option(
            group=Group.RESOURCES,
            help="GPUs per actor: an integer, or a fraction of one GPU. 0 uses CPUs only.",
            metavar="X",
            default="1 if there are GPUs",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    address: Annotated[
        str | None,
        Option(
            group=Group.RESOURCES,
            help="Address of the Ray cluster, such as `auto` or host:6379. `local` starts Ray on "
            "this machine.",
            metavar="ADDRESS",
            default="$RAY_ADDRESS if set, otherwise local",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None

    shard_timeout: Annotated[
        Annotated[float, Gt(0)] | None,
        Option(
            group=Group.ROBUSTNESS,
            help="Restart an actor if it has not finished a shard for this many seconds. Stop the "
            "run if all actors have been waiting that long for the next shard of a dataset.",
            metavar="SECONDS",
            default="no limit",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = None
    max_attempts: Annotated[
        PositiveInt,
        Option(
            group=Group.ROBUSTNESS,
            help="Maximum attempts per shard if actors die. After that, its records are tried one "
            "by one, and a record that kills this many actors is rejected.",
            metavar="N",
            on_resume=OnResume.MAY_CHANGE,
        ),
    ] = 3
    max_rejects: Annotated[
        Annotated[int, Ge(0)] | None,
        Option(
            group=Group.ROBUSTNESS,
            help="Stop the run if more than this many records are rejected.",
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
            help="Run folder: a path or URI. If it already contains the same run, the run is "
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
            help="Delete the existing run in the run folder and start over.",
            on_resume=OnResume.NOT_COMPARED,
        ),
    ] = False
    projector_limit: Annotated[
        PositiveInt,
        Option(
            group=Group.OUTPUT,
            help="Maximum number of points in the projector. Larger runs are shown as a sample.",
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
    """Return the type of an option's value, without `None` and constraints."""
    return _strip_annotation(RunOptions.__annotations__[name])


def _strip_annotation(annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _strip_annotation(annotation.__origin__)
    if origin in (Union, UnionType):
        return _strip_annotation(
            next(item for item in get_args(annotation) if item is not NoneType)
        )
    return annotation


def get_default(name: str) -> Any:
    """Return the default of an option; None if it is required."""
    return getattr(RunOptions, name, None)


def format_flag(name: str) -> str:
    """Return the command-line flag of a field, such as ``--batch-size``."""
    singular = name.removesuffix("s") if OPTIONS[name].repeatable else name
    return f"--{singular.replace('_', '-')}"


def takes_json(name: str) -> bool:
    """Return whether an option is a JSON object on the command line."""
    return get_origin(get_value_type(name)) is dict and not OPTIONS[name].repeatable


def describe_default(name: str) -> str | None:
    """Return the default of an option as shown in the help, or None."""
    value = get_default(name)
    shown = value not in (None, False) and not isinstance(value, (tuple, dict))
    return OPTIONS[name].default or (str(value) if shown else None)


def find_options(*ways: OnResume) -> list[str]:
    """Return the names of the options with one of these resume policies."""
    return [name for name, option in OPTIONS.items() if option.on_resume in ways]
