# SPDX-License-Identifier: Apache-2.0
"""Build the encoder of a run with the framework that its model comes from."""

from ray_embed.encoders.frameworks.registry import find_framework
from ray_embed.encoders.local_copies import local_copies
from ray_embed.encoders.spec import Encoder, EncoderSpec, Weights


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
    with local_copies(spec) as local_spec:
        framework = find_framework(local_spec)
        return framework.build(spec, local_spec, threads, saved_weights)
