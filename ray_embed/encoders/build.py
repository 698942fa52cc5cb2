# SPDX-License-Identifier: Apache-2.0
"""Build the encoder of a run with the framework that its model comes from."""

import contextlib
import importlib

from ray_embed.encoders.frameworks.base import BuildEncoder, Framework
from ray_embed.encoders.frameworks.registry import find_framework, use_framework
from ray_embed.encoders.spec import Encoder, EncoderSpec, Weights
from ray_embed.encoders.tensorflow_setup import import_tensorflow


def build(spec: EncoderSpec, threads: int = 1, saved_weights: Weights | None = None) -> Encoder:
    """Build the encoder: load it, check it, make one graph of it, and choose its engine.

    Args:
        spec: the requested encoder.
        threads: the number of threads, for engines with their own thread pool.
        saved_weights: the weights that an earlier start of the run saved. A model from a callable
            without ``--weights`` has random initial weights, which must stay the same.

    Raises:
        InputError: the model, its weights, a layer or the pooling is unsuitable, or two calls on
            the same images return different features.
    """
    return Builder().build(spec, threads, saved_weights)


def import_packages(model: str, folder: str) -> None:
    """Import what building an encoder will probably need, before the request is known.

    Args:
        model: ``--model``.
        folder: the folder that the command was started in.
    """
    spec = EncoderSpec(model=model, folder=folder)
    framework = find_framework(spec)
    if framework.uses_tensorflow:
        import_tensorflow()
    # Whether packages are missing is checked elsewhere.
    with contextlib.suppress(ImportError):
        for name in framework.list_imports(spec):
            importlib.import_module(name)


def needs_tensorflow(spec: EncoderSpec) -> bool:
    """Return whether building an encoder needs TensorFlow."""
    return spec.preprocess is not None or find_framework(spec).uses_tensorflow


class Builder:
    """Builds encoders one after the other. A framework may let them share what they have in common,
    such as the loaded model of encoders that differ only in their weights.
    """

    def __init__(self) -> None:
        self._builds: dict[str, BuildEncoder] = {}

    def build(self, spec: EncoderSpec, threads: int, saved_weights: Weights | None) -> Encoder:
        """Build an encoder. See :func:`build`."""

        def build_with(framework: Framework, local_spec: EncoderSpec) -> Encoder:
            if framework.name not in self._builds:
                self._builds[framework.name] = framework.start_building()
            return self._builds[framework.name](spec, local_spec, threads, saved_weights)

        return use_framework(spec, build_with)
