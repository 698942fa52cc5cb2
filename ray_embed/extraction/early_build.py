# SPDX-License-Identifier: Apache-2.0
"""Start to build the encoder of a run before Ray has started, if nothing that Ray knows matters."""

import os
from collections.abc import Callable, Sequence

from ray_embed.config import RunConfig
from ray_embed.encoders.spec import Build, Encoder, EncoderSpec, Weights
from ray_embed.extraction.kept_encoder import may_have_kept_encoder
from ray_embed.extraction.prepare import find_image_shape, make_spec_for_run, read_saved_weights
from ray_embed.runs.workspace import Target
from ray_embed.runtime import nodes, resources
from ray_embed.sources.base import Source
from ray_embed.sources.open import select_datasets


def build_early(
    build: Build,
    config: RunConfig,
    target: Target,
    sources: Sequence[Source],
    threads: int | None,
) -> Build:
    """Send the request that the run will send later, and return a function that then waits for it.

    Nothing is sent if the request is not known yet, because the images of a dataset have an unknown
    shape, or if the run will not send one: with GPUs, an actor builds the encoder, and Python
    objects are built in this process.

    Args:
        build: sends requests to the build process.
        config: the options of the run.
        target: its run folder.
        sources: its sources.
        threads: the threads per actor of the run that is resumed; None for a new run.

    Raises:
        InputError: the weights of an earlier start are damaged.
    """
    if may_have_kept_encoder(config):
        return build
    has_objects = not isinstance(config.model, str) or callable(config.preprocess)
    if has_objects or select_datasets(sources) or config.gpus_per_actor or nodes.may_have_gpus():
        return build
    machine = [nodes.Node("", os.cpu_count() or 1, 0.0)]
    each = resources.choose_resources(config, machine, config.cpus_per_actor or threads)
    shape = find_image_shape(sources, {})
    asked = make_spec_for_run(config, shape, config.batch_size or each.batch_size, target)
    wait = build(asked, each.cpus, read_saved_weights(asked, target))

    def wait_or_build(
        spec: EncoderSpec, threads: int, saved_weights: Weights | None
    ) -> Callable[[], Encoder]:
        if (spec, threads) == (asked, each.cpus):
            return wait
        return build(spec, threads, saved_weights)

    return wait_or_build
