# SPDX-License-Identifier: Apache-2.0
"""The main pipeline of a run: prepare, extract, reduce."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.console import say
from ray_embed.core.uri import redact_uri, remove_credentials
from ray_embed.encoders.build_process import Build, start_build_process
from ray_embed.errors import DamagedError, RunError
from ray_embed.extraction import preflight
from ray_embed.extraction.dataset_reader import open_dataset_readers
from ray_embed.extraction.driver import extract_missing
from ray_embed.extraction.prepare import (
    PreparedRun,
    check_model,
    make_encoder_spec,
    prepare,
    write_run_folder,
)
from ray_embed.extraction.worker import Extractor
from ray_embed.projector.reduce import describe_limits, merge
from ray_embed.results import Run, load
from ray_embed.runs import integrity
from ray_embed.runs.workspace import open_target
from ray_embed.runtime import resources
from ray_embed.runtime.remote_map import map_in_actors
from ray_embed.runtime.session import Session, open_session, starts_own_ray
from ray_embed.sources.open import open_sources
from ray_embed.storage import layout, manifest
from ray_embed.storage.filesystem import Folder


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


def execute(config: RunConfig, *, build_projector: bool) -> Outcome:
    """Extract features, optionally build the projector, and measure the time. See :func:`run`."""
    began = time.monotonic()
    sources = open_sources(config)
    check_model(config)
    with (
        open_target(config) as target,
        _open_builder(config, target.threads) as build,
        open_session(config, Extractor, target.threads) as running,
        open_dataset_readers(config, sources, running) as readers,
        tempfile.TemporaryDirectory() as folder,
    ):
        preflight.check(config, target)
        scratch = Folder.open(folder)
        prepared = prepare(config, sources, readers, target, scratch, running, build)
        write_run_folder(config, prepared, scratch)
        finished, speed = _extract_and_reduce(config, prepared, running, build_projector)
    return Outcome(finished, speed, time.monotonic() - began)


@contextlib.contextmanager
def _open_builder(config: RunConfig, threads: int | None) -> Iterator[Build | None]:
    """Build the encoder in a separate process while a local Ray starts.

    Yield None if that does not apply.
    """
    if not starts_own_ray(config) or not isinstance(config.model, str):
        yield None
        return
    count = resources.choose_threads(config.cpus_per_actor or threads, os.cpu_count() or 1)
    with start_build_process(count, str(Path.cwd())) as build:
        yield build


def _merge_parts(out: str, limit: int, running: Session) -> int:
    """Merge the parts, in parallel on actors of all nodes, and return the number of points."""
    others = running.list_other_actors()
    remote_map = partial(map_in_actors, others) if others else None
    return running.call(merge, out, limit, running.resources.cpus, remote_map)()


def _extract_and_reduce(
    config: RunConfig, prepared: PreparedRun, running: Session, build_projector: bool
) -> tuple[Run, float]:
    """Extract missing shards and build the projector.

    Shards that turn out to be damaged are extracted again.
    """
    target = prepared.target
    for is_last in (False, False, True):
        try:
            speed = extract_missing(config, prepared, running)
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
                say("building the projector")
                points = _merge_parts(target.uri, config.projector_limit, running)
                for line in describe_limits(target.uri, points, config.projector_limit):
                    say(line)
            break
        except DamagedError as error:
            if is_last:
                raise
            integrity.delete_damaged_shards(target.folder, _read_expected(prepared), error)
    return finished, speed


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
