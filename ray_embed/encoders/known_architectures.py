# SPDX-License-Identifier: Apache-2.0
"""Recognize architectures by their layers, and advise on the preprocessing that they need."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """An architecture whose preprocessing is not part of the network.

    Attributes:
        layers: layers that the architecture has.
        option: the name of its preprocessing.
        pixels: what that preprocessing returns.
        without: layers that the architecture does not have.
    """

    name: str
    layers: frozenset[str]
    option: str
    pixels: str
    without: frozenset[str] = frozenset()


_MEANS = "BGR minus the means of ImageNet"
_SYMMETRIC = "pixels in [-1, 1]"
_NORMALIZED = "pixels normalized by ImageNet's mean and standard deviation"


def _family(name: str, layers: str, option: str, pixels: str, without: str = "") -> Family:
    return Family(name, frozenset(layers.split()), option, pixels, frozenset(without.split()))


# Layers are listed by their names in Keras. They are early ones: an encoder may end anywhere.
_FAMILIES = (
    _family("ResNetV2", "conv1_conv conv2_block1_preact_bn", "resnet_v2", _SYMMETRIC),
    _family("DenseNet", "conv2_block1_0_bn conv2_block1_concat", "densenet", _NORMALIZED),
    _family("ResNet", "conv1_conv conv2_block1_1_conv", "resnet50", _MEANS),
    _family("VGG", "block1_conv1 block1_conv2", "vgg16", _MEANS, "block1_conv1_bn"),
    _family("Xception", "block1_conv1 block1_conv1_bn", "xception", _SYMMETRIC),
    _family("MobileNetV2", "Conv1 expanded_conv_depthwise", "mobilenet_v2", _SYMMETRIC),
    _family("MobileNet", "conv1 conv_dw_1", "mobilenet", _SYMMETRIC),
    _family("InceptionV3", "mixed0 mixed1", "inception_v3", _SYMMETRIC),
    _family("InceptionResNetV2", "mixed_5b", "inception_resnet_v2", _SYMMETRIC),
    _family("NASNet", "stem_conv1 stem_bn1", "nasnet", _SYMMETRIC),
)
_VIT = "patching_and_embedding"


def advise(graph: Any) -> str:
    """Return a line of advice if the graph has a known architecture, or an empty string.

    Args:
        graph: a GraphDef whose nodes are named after their layers.
    """
    scopes = {scope for node in graph.node for scope in node.name.split("/")[:-1]}
    # Keras 3 adds a number to a scope to make it unique.
    layers = scopes | {scope.rpartition("_")[0] for scope in scopes}
    for family in _FAMILIES:
        if family.layers <= layers and not family.without & layers:
            return (
                f"the encoder has the layers of {family.name} in keras.applications, whose "
                f"published weights take {family.pixels}: if yours do too, give "
                f"--preprocess keras:{family.option}"
            )
    if any(layer.startswith("vi_t") and _VIT in layer for layer in layers):
        return (
            "the encoder has the layers of ViT in KerasHub, whose published weights take "
            f"{_SYMMETRIC}: if yours do too, give --scale symmetric"
        )
    return ""
