# SPDX-License-Identifier: Apache-2.0
"""All frameworks that encoders may come from. The first one that matches builds the encoder."""

from ray_embed.encoders.frameworks import keras, onnx
from ray_embed.encoders.frameworks.base import Framework
from ray_embed.encoders.spec import EncoderSpec

FRAMEWORKS = (onnx.FRAMEWORK, keras.FRAMEWORK)
_BY_NAME = {framework.name: framework for framework in FRAMEWORKS}


def find_framework(spec: EncoderSpec) -> Framework:
    """Return the framework of a model, which is on this machine if it is a file."""
    return next(framework for framework in FRAMEWORKS if framework.matches(spec))


def get_framework(name: str) -> Framework:
    """Return the framework with a name."""
    return _BY_NAME[name]
