# SPDX-License-Identifier: Apache-2.0
"""Run many encoders over the same records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig
from ray_embed.core.console import Say, say
from ray_embed.errors import InputError, RayEmbedError, RunError
from ray_embed.pipeline import Request, execute_together
from ray_embed.results import Run
from ray_embed.runs.workspace import choose_default_out, make_sweep_name
from ray_embed.sweeps.variants import Variant, make_variants
from ray_embed.sweeps.weight_files import find_models, find_weights


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep: its folder, the finished runs, and the errors of the others."""

    out: str
    runs: dict[str, Run]
    failures: dict[str, RayEmbedError]


def sweep(
    config: RunConfig,
    *,
    weights: Sequence[str | Path] = (),
    models: Sequence[Any] = (),
    layers: Sequence[Sequence[str]] = (),
) -> dict[str, Run]:
    """Embed the same images with many encoders, decoding each image only once.

    Each encoder gets its own run folder, ``<out>/<name>``, with the same bytes that :func:`run`
    writes. To add an encoder later, or to resume, call this function again: only what is missing is
    processed. An encoder that fails does not stop the others.

    Args:
        config: the options that all runs share. `out` is the folder of the run folders.
        weights: the weights to sweep over: paths, URIs, patterns such as
            ``checkpoints/epoch-*.weights.h5``, or a folder with several TensorFlow checkpoints.
            By default, those of `config`.
        models: the models to sweep over: paths, URIs or patterns, or Keras models. By default, that
            of `config`.
        layers: the sets of layers to sweep over. By default, that of `config`.

    Returns:
        The finished runs by name, in the order of `weights`. Failures are printed.

    Raises:
        InputError: the options or the sources are invalid, or all encoders failed because of their
            input.
        RunError: all encoders failed; finished shards are kept.
    """
    swept = execute_sweep(config, models, [str(each) for each in weights], layers)
    for name, error in swept.failures.items():
        say(f"failed: {name}: {error}")
    return swept.runs


def execute_sweep(
    config: RunConfig,
    models: Sequence[Any],
    weights: Sequence[str],
    layers: Sequence[Sequence[str]],
) -> Sweep:
    """Run all encoders of a sweep; see :func:`sweep`."""
    out = config.out or make_sweep_name(choose_default_out(config))
    if config.out is None:
        say(f"run folders: {out}/…")
    paths = [str(each) if isinstance(each, Path) else each for each in models]
    found = find_models([each for each in paths if isinstance(each, str)])
    found += [each for each in paths if not isinstance(each, str)]
    given = weights or [config.weights or ""]
    found_weights = find_weights([each for each in given if each])
    variants = make_variants(config, found, found_weights, layers, out)
    say(f"{len(variants)} encoders: {', '.join(variant.name for variant in variants)}")
    requests = _make_requests(variants)
    results, _ = execute_together(requests, build_projector=True)
    runs: dict[str, Run] = {}
    failures: dict[str, RayEmbedError] = {}
    for variant, result in zip(variants, results, strict=True):
        if isinstance(result, RayEmbedError):
            failures[variant.name] = result
        else:
            runs[variant.name] = result
    if not runs:
        raise _join_failures(failures)
    return Sweep(out, runs, failures)


def _make_requests(variants: Sequence[Variant]) -> list[Request]:
    """Return the runs, which print each line only once."""
    said: set[str] = set()

    def name_lines(name: str) -> Say:
        def say_once(text: str) -> None:
            if text not in said:
                said.add(text)
                say(f"{name}: {text}")

        return say_once

    return [Request(variant.config, name_lines(variant.name)) for variant in variants]


def _join_failures(failures: dict[str, RayEmbedError]) -> RayEmbedError:
    """Return one error for all encoders."""
    first = next(iter(failures.values()))
    if len(failures) == 1:
        return first
    lines = "\n".join(f"  {name}: {error}" for name, error in failures.items())
    text = f"all {len(failures)} encoders failed:\n{lines}"
    is_input = all(isinstance(error, InputError) for error in failures.values())
    return InputError(text) if is_input else RunError(text)
