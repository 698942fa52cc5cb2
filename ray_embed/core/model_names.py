# SPDX-License-Identifier: Apache-2.0
"""Names of models in libraries, such as ``keras:NAME`` and ``timm:NAME``."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from ray_embed.core.uri import is_uri

KERAS, KERAS_HUB, HF, OPEN_CLIP, TIMM = "keras:", "keras_hub:", "hf:", "open_clip:", "timm:"
_PREFIXES = (KERAS, KERAS_HUB, HF, OPEN_CLIP, TIMM)
# Places that KerasHub downloads from; other URIs are folders.
_HUBS = ("kaggle://", "hf://", "modelscope://")


@dataclass(frozen=True)
class Application:
    """An architecture of keras.applications.

    Attributes:
        name: its class, or rather the function that builds it.
        module: the module in keras.applications that has its `preprocess_input`.
        size: the height and width of the images that its published weights were trained on.
    """

    name: str
    module: str
    size: int


def _list_applications() -> list[Application]:
    sizes = {
        "convnext": "ConvNeXtTiny 224, ConvNeXtSmall 224, ConvNeXtBase 224, ConvNeXtLarge 224, "
        "ConvNeXtXLarge 224",
        "densenet": "DenseNet121 224, DenseNet169 224, DenseNet201 224",
        "efficientnet": "EfficientNetB0 224, EfficientNetB1 240, EfficientNetB2 260, "
        "EfficientNetB3 300, EfficientNetB4 380, EfficientNetB5 456, EfficientNetB6 528, "
        "EfficientNetB7 600",
        "efficientnet_v2": "EfficientNetV2B0 224, EfficientNetV2B1 240, EfficientNetV2B2 260, "
        "EfficientNetV2B3 300, EfficientNetV2S 384, EfficientNetV2M 480, EfficientNetV2L 480",
        "inception_resnet_v2": "InceptionResNetV2 299",
        "inception_v3": "InceptionV3 299",
        "mobilenet": "MobileNet 224",
        "mobilenet_v2": "MobileNetV2 224",
        "mobilenet_v3": "MobileNetV3Large 224, MobileNetV3Small 224",
        "nasnet": "NASNetLarge 331, NASNetMobile 224",
        "resnet50": "ResNet50 224",
        "resnet": "ResNet101 224, ResNet152 224",
        "resnet_v2": "ResNet50V2 224, ResNet101V2 224, ResNet152V2 224",
        "vgg16": "VGG16 224",
        "vgg19": "VGG19 224",
        "xception": "Xception 299",
    }
    return [
        Application(name, module, int(size))
        for module, text in sizes.items()
        for name, size in (each.split() for each in text.split(", "))
    ]


APPLICATIONS = tuple(_list_applications())


def names_model(text: str) -> bool:
    """Return whether `text` names a model of a library, such as ``keras:resnet50``."""
    return text.startswith(_PREFIXES) and not is_uri(text)


def normalize_model(text: str) -> str:
    """Return the name of a model in the spelling of its library.

    Folders and URIs after a prefix are returned without it, because they are read like any other
    model. Everything else is returned unchanged.

    Raises:
        ValueError: keras.applications has no such architecture, or several.
    """
    if text.startswith(KERAS):
        return f"{KERAS}{find_application(text).name}"
    if not names_model(text):
        return text
    name = text.partition(":")[2]
    # A folder with the results of a model often has its name.
    is_model = any(Path(name).glob("*config.json"))
    is_place = is_model or (is_uri(name) and not name.startswith(_HUBS))
    return name if name and is_place else text


def find_application(text: str) -> Application:
    """Return the architecture of keras.applications that ``keras:NAME`` names.

    Its class and its module may be named, in any case.

    Raises:
        ValueError: there is no such architecture, or the module has several.
    """
    wanted = _simplify(text.removeprefix(KERAS))
    for application in APPLICATIONS:
        if _simplify(application.name) == wanted:
            return application
    inside = [each.name for each in APPLICATIONS if _simplify(each.module) == wanted]
    if inside:
        raise ValueError(
            f"{text}: keras.applications.{_find_module(wanted)} has several architectures; name "
            f"one of {', '.join(f'{KERAS}{name}' for name in inside)}"
        )
    known = {_simplify(each.name): each.name for each in APPLICATIONS}
    close = [known[each] for each in difflib.get_close_matches(wanted, known, 5, 0.6)]
    listed = ", ".join(f"{KERAS}{name}" for name in close or known.values())
    raise ValueError(
        f"{text}: keras.applications has no such architecture; "
        f"{'did you mean' if close else 'it has'} {listed}{'?' if close else ''}"
    )


def _simplify(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _find_module(wanted: str) -> str:
    return next(each.module for each in APPLICATIONS if _simplify(each.module) == wanted)
