# SPDX-License-Identifier: Apache-2.0
"""Choose an encoder's engine: the first one whose features agree with a plain call's features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import Engine, EngineError, candidates
from ray_embed.encoders.features import Encode
from ray_embed.encoders.frameworks.base import Framework
from ray_embed.encoders.model_errors import quote_error
from ray_embed.encoders.probe_images import blank_batch
from ray_embed.encoders.spec import Encoder, EncoderSpec
from ray_embed.errors import InputError

# The guarantee for float32 is |f - g| <= RELATIVE·|g| + ABSOLUTE·max|g|. Trained encoders in
# float32 differ by up to 6e-6·max|g| from float64, in Keras and in engines alike. A plain Keras
# call on one image shifts the features of trained encoders by 1e-6, and of random ones by 1.3e-5
# (tests/benchmarks/batch_sizes.py).
_RELATIVE, _ABSOLUTE = 1e-5, 1e-5
# bfloat16 keeps 8 bits of each number, and errors add up over the layers.
_BFLOAT16 = 5e-2


@dataclass(frozen=True)
class Reference:
    """A plain call of the model: the function, a batch of images, and their features.

    `graph` is the framework's own graph of the encoder, for engines that convert it.
    """

    encode: Encode
    images: Array
    features: list[Array]
    graph: Any = None


def agree(features: list[Array], expected: list[Array], precision: str = "float32") -> bool:
    """Return whether features agree with the plain call's features, within the guarantee."""
    for f, g in zip(features, expected, strict=True):
        largest = np.nanmax(np.abs(g), initial=0.0)
        bound = _RELATIVE * np.abs(g) + _ABSOLUTE * largest
        if precision == "bfloat16":
            bound = bound + _BFLOAT16 * largest
        # Rows in which the plain call's features are not finite are rejected later.
        if not np.all((np.abs(f - g) <= bound) | ~np.isfinite(g)):
            return False
    return True


def choose_engine(
    framework: Framework,
    draft: Encoder,
    reference: Reference,
    threads: int,
    lower: Callable[[Encoder], tuple[Encoder, list[str]]],
) -> Encoder:
    """Return the encoder with the first engine that agrees with the plain call.

    Args:
        framework: the framework of the encoder.
        draft: the encoder without an engine.
        reference: a plain call of the model.
        threads: the number of threads, for engines with their own thread pool.
        lower: returns the encoder as bfloat16 needs it, for engines that do not lower the precision
            themselves, and warnings. It raises InputError if that is impossible.

    Raises:
        InputError: no engine agrees.
    """
    engines, warnings = _usable_engines(framework, draft), list(draft.warnings)
    lowers_itself = [e for e in engines if draft.spec.precision == "float32" or e.lowers_precision]
    chosen = _first_that_agrees(draft, lowers_itself, reference, threads, warnings)
    others = [engine for engine in engines if engine not in lowers_itself]
    if chosen is None and others:
        lowered, reasons = lower(draft)
        warnings += reasons
        chosen = _first_that_agrees(lowered, others, reference, threads, warnings)
    if chosen is None:
        raise _no_engine(draft.spec, warnings)
    return replace(chosen, spec=_without_objects(draft.spec), warnings=tuple(warnings))


def _usable_engines(framework: Framework, draft: Encoder) -> list[Engine]:
    engines = candidates(framework.engines, draft.spec.engine, framework.has_gpu())
    if not engines:
        options = dict.fromkeys(engine.option for engine in framework.engines)
        raise InputError(
            f"--engine {draft.spec.engine}: it does not run {draft.spec.model_name}; give "
            f"--engine auto, {', '.join(options)}"
        )
    return [engine for engine in engines if engine.decodes_files or not draft.takes_bytes]


def _first_that_agrees(
    draft: Encoder,
    engines: Sequence[Engine],
    reference: Reference,
    threads: int,
    warnings: list[str],
) -> Encoder | None:
    """Return the encoder with the first engine that agrees, and append why others do not."""
    for engine in engines:
        if engine.needs_graph and engine.convert is None and draft.graph is None:
            continue
        if not engine.needs_graph and not draft.spec.can_be_loaded_again:
            continue
        graph = draft.graph if engine.needs_graph else None
        encoder = replace(draft, engine=engine.name, graph=graph)
        try:
            return _open_and_compare(engine, encoder, reference, threads)
        except EngineError as error:
            warnings.append(f"engine {engine.name}: {error}")
    return None


def _open_and_compare(
    engine: Engine, encoder: Encoder, reference: Reference, threads: int
) -> Encoder:
    """Return the encoder with the graph that an engine takes.

    Raises:
        EngineError: the engine fails on the reference's images, or gives other features.
    """
    try:
        if engine.convert is not None:
            encoder = replace(encoder, graph=engine.convert(encoder, reference.graph))
        features = _run_in_batches(engine.open(encoder, threads), encoder, reference.images)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"fails ({type(error).__name__}: {quote_error(error)[:200]})") from error
    if not agree(features, reference.features, encoder.spec.precision):
        raise EngineError("its features differ from those of the plain call")
    return encoder


def _run_in_batches(
    run: Callable[[Array], list[Array]], encoder: Encoder, images: Array
) -> list[Array]:
    """Run an engine on any number of images, in batches that are filled up with blank ones."""
    size = encoder.spec.batch_size
    calls = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        batch = blank_batch(encoder, size)
        batch[: len(part)] = part
        calls.append([rows[: len(part)] for rows in run(batch)])
    return [np.concatenate(rows) for rows in zip(*calls, strict=True)]


def _without_objects(spec: EncoderSpec) -> EncoderSpec:
    """Drop model and preprocessing objects, which the graph contains; the model's name is kept.

    Other processes then need not import these objects, nor receive the weights twice.
    """
    preprocess = None if callable(spec.preprocess) else spec.preprocess
    return replace(spec, model=spec.model_name, preprocess=preprocess)


def _no_engine(spec: EncoderSpec, warnings: list[str]) -> InputError:
    fix = ""
    if not spec.can_be_loaded_again:
        fix = (
            "; give the model and the preprocessing as 'module:callable', so that each process "
            "can load them"
        )
    return InputError(
        f"--engine {spec.engine}: no engine gives the features of the plain call; "
        f"{'; '.join(warnings) or 'none could be used'}{fix}"
    )
