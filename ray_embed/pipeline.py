# SPDX-License-Identifier: Apache-2.0
"""The main pipeline of a run: prepare, extract, reduce."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.console import Say, say
from ray_embed.core.uri import redact_uri, remove_credentials
from ray_embed.encoders import artifacts
from ray_embed.encoders.build_process import start_build_process
from ray_embed.encoders.spec import Build
from ray_embed.errors import DamagedError, InputError, RayEmbedError, RunError
from ray_embed.extraction import preflight
from ray_embed.extraction.dataset_reader import open_dataset_readers
from ray_embed.extraction.driver import Found, extract_missing, find_finished
from ray_embed.extraction.early_build import build_early
from ray_embed.extraction.kept_encoder import may_have_kept_encoder, read_kept_encoder
from ray_embed.extraction.prepare import (
    PreparedRun,
    RunRequest,
    check_model,
    make_encoder_spec,
    prepare,
    write_run_folder,
)
from ray_embed.extraction.worker import Extractor
from ray_embed.projector.reduce import describe_limits, merge
from ray_embed.results import Run, load
from ray_embed.runs import integrity
from ray_embed.runs.workspace import Target, open_target
from ray_embed.runtime import memory
from ray_embed.runtime.nodes import list_nodes
from ray_embed.runtime.remote_map import map_in_actors
from ray_embed.runtime.session import RunSession, open_session
from ray_embed.runtime.warm_ray import will_start_ray
from ray_embed.sources.open import open_sources
from ray_embed.storage import layout, manifest
from ray_embed.storage.filesystem import Folder

_ENCODERS_PER_PROCESS = 3


@dataclass(frozen=True)
class Outcome:
    """The result of `execute`.

    Attributes:
        run: the finished run.
        speed: images per second during extraction, or 0 if nothing was extracted.
        seconds: the total duration.
    """

    run: Run
    speed: float
    seconds: float

    def summary(self) -> str:
        """Return a short summary: the counts, where the results are, and the next commands."""
        rejects = self.run.rejects
        reasons = list(self.run.rejects_by_reason.items())[:3]
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons)
        lines = [
            f"{self.run.rows + rejects} records: {self.run.rows} embedded, {rejects} rejected"
            + (f" ({listed})" if rejects else ""),
            f"{self.seconds:.0f} s in total"
            + (f", {self.speed:.0f} img/s while extracting" if self.speed else ""),
            f"features  {redact_uri(self.run.features_path)}",
        ]
        path = remove_credentials(self.run.path, "***@")
        if Folder.open(self.run.projector_path).exists(layout.PROJECTOR_CONFIG):
            lines.append(f"view      ray-embed view {path}")
            lines.append(f"evaluate  ray-embed evaluate {path}")
        else:
            lines.append(f"next      ray-embed reduce {path}")
        return "\n".join(lines)


def run(config: RunConfig) -> Run:
    """Extract the features of every record, then build TensorBoard's projector.

    To resume a run, call this function again with the same configuration. Only missing shards are
    processed.

    Args:
        config: what to embed, with which encoder, and where to write the result.

    Returns:
        The finished run.

    Raises:
        InputError: the configuration or the input is invalid; nothing was written.
        RunError: the run failed; finished shards are kept.
    """
    return execute(config, build_projector=True).run


def extract(config: RunConfig) -> Run:
    """Extract the features of every record without building the projector. See :func:`run`."""
    return execute(config, build_projector=False).run


def execute(config: RunConfig, *, build_projector: bool, build: Build | None = None) -> Outcome:
    """Extract features, optionally build the projector, and measure the time. See :func:`run`.

    Args:
        config: the options.
        build_projector: whether to build the projector.
        build: a build process that was started before; None to start one if there is a use for it.
    """
    began = time.monotonic()
    results, speed = execute_together(
        [Request(config)], build_projector=build_projector, build=build
    )
    (finished,) = results
    if isinstance(finished, RayEmbedError):
        raise finished
    return Outcome(finished, speed, time.monotonic() - began)


@dataclass(frozen=True)
class Request:
    """The options of a run, and what prints a line about it."""

    config: RunConfig
    say: Say = say


def execute_together(
    requests: Sequence[Request],
    *,
    build_projector: bool,
    build: Build | None = None,
) -> tuple[list[Run | RayEmbedError], float]:
    """Execute runs of several encoders over the same records, each of which is decoded once.

    Args:
        requests: the runs. Their options differ only in the encoder and the run folder.
        build_projector: whether to build the projectors.
        build: see :func:`execute`.

    Returns:
        Each run, or the error that concerns it alone; and the images per second of extraction.

    Raises:
        InputError: the sources or the options that all runs share are invalid.
        RunError: the runs failed; finished shards are kept.
    """
    config = requests[0].config
    sources = open_sources(config)
    results: dict[int, Run | RayEmbedError] = {}
    with contextlib.ExitStack() as stack:
        targets = _open_targets(requests, results, stack)
        if not targets:
            return [results[number] for number in range(len(requests))], 0.0
        threads = config.cpus_per_actor or next(iter(targets.values())).threads
        configs = [requests[number].config for number in targets]
        builds = [
            build_early(build, requests[number].config, target, sources, threads)
            for build, (number, target) in zip(
                stack.enter_context(_open_builders(configs, threads, build)),
                targets.items(),
                strict=False,
            )
        ]
        running = stack.enter_context(open_session(configs, Extractor, threads))
        readers = stack.enter_context(open_dataset_readers(config, sources, running))
        scratch = Folder.open(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, target in targets.items():
            preflight.check(requests[number].config, target)
        asked = [
            RunRequest(requests[number].config, target, requests[number].say)
            for number, target in targets.items()
        ]
        prepared: dict[int, PreparedRun] = {}
        sizes: list[int] = []
        for number, one in zip(
            targets, prepare(asked, sources, readers, scratch, running, builds), strict=True
        ):
            if isinstance(one, InputError):
                results[number] = one
                continue
            write_run_folder(one, scratch)
            sizes.append(
                memory.estimate_bytes(
                    artifacts.count_bytes(one.encoder), artifacts.count_batch_bytes(one.encoder)
                )
            )
            prepared[number] = replace(one, encoder=artifacts.strip_contents(one.encoder))
        speed = 0.0
        # After an error of any kind, actors may still write.
        running.are_reusable = False
        for together in _plan_passes(prepared, sizes, running):
            siblings = [
                run.target.uri
                for number, run in prepared.items()
                if isinstance(results.get(number), Run)
            ]
            speed = max(
                speed,
                _extract_and_reduce(config, together, siblings, results, running, build_projector),
            )
        running.are_reusable = not any(
            isinstance(results[number], RayEmbedError) for number in prepared
        )
    return [results[number] for number in range(len(requests))], speed


def _plan_passes(
    prepared: dict[int, PreparedRun], sizes: Sequence[int], running: RunSession
) -> list[dict[int, PreparedRun]]:
    """Divide runs so that the encoders of each pass fit into an actor together."""
    available = memory.get_memory_for_encoders(list_nodes(), running.resources)
    passes = memory.split_into_passes(sizes, available)
    if len(passes) > 1:
        say(
            f"{len(sizes)} encoders need about {sum(sizes) / 1e9:.1f} GB in each actor, which has "
            f"{(available or 0) / 1e9:.1f} GB for them: images are decoded in {len(passes)} passes"
        )
    numbers = list(prepared)
    return [
        {numbers[position]: prepared[numbers[position]] for position in positions}
        for positions in passes
    ]


def _open_targets(
    requests: Sequence[Request],
    results: dict[int, Run | RayEmbedError],
    stack: contextlib.ExitStack,
) -> dict[int, Target]:
    """Open and lock the run folders, and note the errors of those that cannot be used."""
    targets = {}
    for number, request in enumerate(requests):
        try:
            is_gone = may_have_kept_encoder(request.config)
            if not is_gone:
                check_model(request.config)
            target = stack.enter_context(open_target(request.config))
            spec = make_encoder_spec(request.config, None, 1)
            if is_gone and read_kept_encoder(request.config, target, spec) is None:
                check_model(request.config)
            targets[number] = target
        except InputError as error:
            results[number] = error
    return targets


@contextlib.contextmanager
def _open_builders(
    configs: Sequence[RunConfig], threads: int | None, build: Build | None
) -> Iterator[Sequence[Build]]:
    """Build encoders in separate processes while a local Ray starts.

    Yield what starts a build in each, or nothing if that does not apply.
    """
    are_named = all(isinstance(config.model, str) for config in configs)
    if build is not None or not are_named or not will_start_ray(configs, threads):
        yield () if build is None else (build,)
        return
    # Another process has to import the framework, too, which pays off with a few encoders.
    count = min(1 + len(configs) // _ENCODERS_PER_PROCESS, os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start_build_process(configs[0].model)) for _ in range(count)]


def _merge_parts(out: str, limit: int, running: RunSession, siblings: Sequence[str]) -> int:
    """Merge the parts, in parallel on actors of all nodes, and return the number of points."""
    others = running.list_other_actors()
    remote_map = partial(map_in_actors, others) if others else None
    return running.call(merge, out, limit, running.resources.cpus, remote_map, siblings)()


def _extract_and_reduce(
    config: RunConfig,
    prepared: dict[int, PreparedRun],
    siblings: Sequence[str],
    results: dict[int, Run | RayEmbedError],
    running: RunSession,
    build_projector: bool,
) -> float:
    """Extract missing shards, build the projectors, and add each run to `results`.

    Shards that turn out to be damaged are extracted again. `siblings` are the folders of finished
    runs with the same records.

    Returns:
        Images per second during extraction.
    """
    left, speed = dict(prepared), 0.0
    finished: list[str] = []
    for is_last in (False, False, True):
        if not left:
            break
        numbers = list(left)
        found = [_find_finished(left[number]) for number in numbers]
        extraction = extract_missing(config, list(left.values()), found, running, siblings)
        speed = max(speed, extraction.speed)
        results.update(
            {numbers[position]: error for position, error in extraction.failures.items()}
        )
        for number in numbers:
            if number in results:
                del left[number]
                continue
            try:
                merged = [*siblings, *finished]
                results[number] = _finish(config, left[number], running, build_projector, merged)
                finished.append(left[number].target.uri)
            except DamagedError as error:
                run = left[number]
                if not is_last:
                    integrity.delete_damaged_shards(run.folder, _read_expected(run), error)
                    continue
                results[number] = error
            except RayEmbedError as error:
                results[number] = error
            del left[number]
    return speed


def _find_finished(prepared: PreparedRun) -> Found:
    """Find what is finished of a run, and delete damaged shards."""
    try:
        return find_finished(prepared)
    except DamagedError as error:
        integrity.delete_damaged_shards(prepared.folder, _read_expected(prepared), error)
        return find_finished(prepared)


def _finish(
    config: RunConfig,
    prepared: PreparedRun,
    running: RunSession,
    build_projector: bool,
    siblings: Sequence[str],
) -> Run:
    """Check the parts of a run, and build its projector.

    `siblings` are the folders of runs with the same records whose projectors have been built.
    """
    target = prepared.target
    if not build_projector:
        # Merging includes this check.
        integrity.check_footers(target.folder, _read_expected(prepared))
    finished = load(target.given)
    if finished.rows == 0:
        raise RunError(
            f"all records were rejected ({', '.join(finished.rejects_by_reason)}); see "
            f"{target.out}/{layout.REJECTS}",
            can_resume=False,
        )
    if build_projector:
        prepared.say("building the projector")
        points = _merge_parts(target.uri, config.projector_limit, running, siblings)
        for line in describe_limits(target.uri, points, config.projector_limit):
            prepared.say(line)
    return finished


def _read_expected(prepared: PreparedRun) -> integrity.Expected:
    run = manifest.read_run(prepared.folder) or {}
    return integrity.Expected.from_run(run, planning.load(prepared.folder))


def list_models_and_layers(
    config: RunConfig,
) -> tuple[dict[str, tuple[int | None, ...]], dict[str, tuple[int | None, ...]]]:
    """Return the output shapes of all submodels and all layers, by name.

    The shape is empty for submodels that are not called by the full model.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    from ray_embed.encoders.layer_shapes import list_shapes
    from ray_embed.encoders.tensorflow_setup import start_tensorflow

    check_model(config)
    start_tensorflow(None, str(Path.cwd()))
    return list_shapes(make_encoder_spec(config, None, 1))
