# SPDX-License-Identifier: Apache-2.0
"""The whole flow: sources → plan → actors → parts → reduce, and what is checked before."""

import functools
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed import fingerprint, plan, schedule, store
from ray_embed._version import __version__
from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.encoder import Encoder, EncoderSpec, keep
from ray_embed.errors import InputError, RunError
from ray_embed.extraction import Prepared, extract_missing
from ray_embed.filesystem import Folder, is_uri, shown
from ray_embed.plan import Plan
from ray_embed.progress import say
from ray_embed.results import Run, load
from ray_embed.schedule import Resources
from ray_embed.sources import Source, Streamed, open_sources
from ray_embed.walk import Walk


@dataclass(frozen=True)
class Outcome:
    """A finished run: images a second while extracting, and seconds in all."""

    run: Run
    speed: float
    seconds: float

    def summary(self) -> str:
        """Say in a few lines what was done and where it is."""
        rejects = self.run.rejects
        reasons = list(self.run.rejects_by_reason.items())[:3]
        shown = ", ".join(f"{count} {reason}" for reason, count in reasons)
        lines = [
            f"{self.run.rows + rejects} records: {self.run.rows} embedded, {rejects} rejected"
            + (f" ({shown})" if rejects else ""),
            f"{self.seconds:.0f} s in all"
            + (f", {self.speed:.0f} img/s while extracting" if self.speed else ""),
            f"features  {self.run.features_path}",
        ]
        if Path(self.run.projector_path).exists():
            lines.append(f"look      ray-embed view {self.run.path}")
        else:
            lines.append(f"next      ray-embed reduce {self.run.path}")
        return "\n".join(lines)


def run(config: RunConfig) -> Run:
    """Extract the features of every record, then merge them for TensorBoard's projector.

    Called again with the same configuration it does only what is missing.

    Args:
        config: what to embed, with which encoder, and where to.

    Returns:
        The run, to read features and labels from.

    Raises:
        InputError: something given does not fit; nothing has been written.
        RunError: it failed while running; what is finished is kept.
    """
    return execute(config, and_reduce=True).run


def extract(config: RunConfig) -> Run:
    """Write the Parquet parts only; see :func:`run`."""
    return execute(config, and_reduce=False).run


def default_out(config: RunConfig) -> str:
    """Name the run folder after the model and its weights: ``runs/<model>-<weights>``."""
    model = config.model if isinstance(config.model, str) else fingerprint.name_of(config.model)
    names = [str(model).rpartition(":")[2] if ":" in str(model) else Path(str(model)).stem]
    if config.weights:
        names.append(Path(config.weights.rstrip("/")).name.partition(".")[0])
    return "runs/" + "-".join(re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in names)


def execute(config: RunConfig, *, and_reduce: bool) -> Outcome:
    """Do what :func:`run` and :func:`extract` say, and measure it."""
    began = time.monotonic()
    sources = open_sources(config)
    _check_model(config)
    out = config.out or default_out(config)
    folder = _open_out(out)
    ours = folder.exists(store.RUN)
    existing = None if config.overwrite and ours else store.read_run(folder)
    if config.out is None:
        say(f"run folder: {out}")
    with schedule.session(config) as resources, tempfile.TemporaryDirectory() as scratch:
        first = schedule.start_extractor(resources, str(Path.cwd()), config.max_attempts)
        planned = Folder.at(scratch)
        prepared = _prepare(config, sources, out, folder, existing, planned, first, resources)
        _begin(config, prepared, existing, planned)
        speed = extract_missing(config, prepared, first, resources)
        if and_reduce:
            say("merging the parts for the projector")
            schedule.result(first.reduce.remote(prepared.uri))
    finished = load(out)
    if finished.rows == 0:
        raise RunError(
            f"every record was rejected ({', '.join(finished.rejects_by_reason)}); see "
            f"{out}/{store.REJECTS}"
        )
    return Outcome(finished, speed, time.monotonic() - began)


def _check_model(config: RunConfig) -> None:
    if isinstance(config.model, str) and not is_callable_reference(config.model):
        if is_uri(config.model):
            raise InputError(f"--model {shown(config.model)}: only local paths can be read so far")
        if not Path(config.model).exists():
            raise InputError(
                f"--model {config.model}: no such file; give a .keras or .h5 file, a SavedModel "
                "folder, or module:callable"
            )


def _open_out(out: str) -> Folder:
    folder = Folder.at(out)
    if folder.is_local:
        path = Path(folder.path)
        above = next(p for p in (path, *path.parents) if p.exists())
        if not above.is_dir():
            raise InputError(f"--out {out}: {above} is a file; give a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"--out {out}: {above} may not be written to; give another folder")
    return folder


def _prepare(
    config: RunConfig,
    sources: list[Source],
    out: str,
    folder: Folder,
    existing: dict[str, Any] | None,
    planned: Folder,
    first: Any,
    resources: Resources,
) -> Prepared:
    walks = {
        source.split: Walk(source, config.limit, str(Path.cwd()))
        for source in sources
        if isinstance(source, Streamed)
    }
    streams = {split: walk.describe() for split, walk in walks.items()}
    shapes = [
        *(getattr(source, "image_shape", None) for source in sources),
        *(info.image_shape for info in streams.values()),
    ]
    spec = _encoder_spec(config, next((shape for shape in shapes if shape), None))
    building = _start_building(spec, config, folder, existing, first)
    listed = plan.make_plan(
        sources,
        streams,
        planned,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        limit=config.limit,
    )
    encoder = building() if callable(building) else schedule.result(building)
    for warning in encoder.warnings:
        say(f"warning: {warning}")
    _check_shapes(config, listed, encoder)
    identity = fingerprint.plain(fingerprint.identity(config, listed, encoder, resources.cpus))
    prepared = Prepared(out, folder, listed, encoder, identity, walks)
    if existing and "identity" in existing:
        _refuse_another(prepared, existing, planned)
    return prepared


def _encoder_spec(config: RunConfig, shape: tuple[int, int, int] | None) -> EncoderSpec:
    return EncoderSpec(
        config.model,
        str(Path.cwd()),
        config.model_kwargs,
        config.imports,
        config.submodel,
        config.weights,
        config.layers,
        config.pool,
        config.image_size,
        shape,
        config.preprocess,
        config.engine,
        config.precision,
        config.batch_size,
    )


def _start_building(
    spec: EncoderSpec,
    config: RunConfig,
    folder: Folder,
    existing: dict[str, Any] | None,
    first: Any,
) -> Any:
    """Start building the encoder in the first actor; gives a reference to it.

    A model object or function in hand is built here, where it is.
    """
    from_callable = not isinstance(spec.model, str) or is_callable_reference(spec.model)
    in_hand = not isinstance(spec.model, str) or callable(spec.preprocess)
    same = existing is not None and existing.get("model") == fingerprint.name_of(config.model)
    kept = None
    if same and from_callable and spec.weights is None and not _is_model_object(spec.model):
        kept = keep.kept_weights(folder)
    if not in_hand:
        return first.build.remote(spec, kept)
    from ray_embed.encoder.build import build

    return functools.partial(build, spec, 1, kept)


def _is_model_object(model: Any) -> bool:
    return not isinstance(model, str) and hasattr(model, "weights")


def _check_shapes(config: RunConfig, planned: Plan, encoder: Encoder) -> None:
    """Refuse array sources whose images do not fit the encoder."""
    height, width, channels = encoder.image_shape
    for split in planned.splits:
        if split.image_shape is None:
            if channels not in (1, 3):
                raise InputError(
                    f"--model {encoder.spec.model_name}: it takes {channels} channels; image files "
                    "give 3, or 1 in grey"
                )
            continue
        given = split.image_shape
        resized = config.image_size is not None or split.image_dtype == "uint8"
        if given[2] != channels or (given[:2] != (height, width) and not resized):
            raise InputError(
                f"--source {split.split}={split.root}: its images are {given[0]}×{given[1]}×"
                f"{given[2]}, the encoder takes {height}×{width}×{channels}; give --image-size "
                f"{height},{width} to have float images resized, or the channels it takes"
            )


def _refuse_another(prepared: Prepared, existing: dict[str, Any], planned: Folder) -> None:
    differences = fingerprint.differences(existing["identity"], prepared.identity)
    if not differences:
        return
    if prepared.folder.exists(plan.PLAN):
        before = {split.split: split for split in plan.load(prepared.folder).splits}
        for split in prepared.plan.splits:
            old = before.get(split.split)
            if old and old.digest and split.digest and old.digest != split.digest:
                where = plan.first_difference(prepared.folder, planned, old, split)
                differences.append(f"first difference in {split.split}: {where}")
    raise InputError(
        f"--out {prepared.out}: it holds another run; what differs:\n  "
        + "\n  ".join(differences)
        + "\ngive another --out, or --overwrite to start anew"
    )


def _begin(
    config: RunConfig, prepared: Prepared, existing: dict[str, Any] | None, planned: Folder
) -> None:
    """Write the run folder's description, encoder and plan, unless they are there."""
    folder = prepared.folder
    if existing and "identity" in existing:
        return
    if folder.exists(store.RUN):
        # To be overwritten, or left by a start that got no further than this.
        folder.delete_all()
    # First of all a mark, so that the folder is known as ours whenever this stops.
    store.write_run(folder, {}, __version__)
    keep.keep(folder, prepared.encoder)
    for split in prepared.plan.splits:
        number = 0
        while planned.exists(name := split.file_of(number)):
            folder.write(name, planned.read(name))
            number += split.shards_a_file
    plan.save(folder, prepared.plan)
    store.write_run(folder, _description(config, prepared), __version__)


def _description(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    given = config.model_dump(mode="python", exclude={"sources", "overwrite"})
    given |= {
        "model": fingerprint.name_of(config.model),
        "preprocess": fingerprint.name_of(config.preprocess),
        "out": shown(prepared.out),
        "address": None if config.address is None else shown(config.address),
        "sources": {split.split: shown(split.root) for split in prepared.plan.splits},
    }
    return {
        "fingerprint": fingerprint.digest(prepared.identity),
        "model": fingerprint.name_of(config.model),
        "config": fingerprint.plain(given),
        "encoder": keep.about(prepared.encoder),
        "versions": fingerprint.versions(),
        "identity": prepared.identity,
    }


def layers(config: RunConfig) -> dict[str, tuple[int | None, ...]]:
    """Give the layers that `layers=` accepts with their output shapes, the batch as None.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    from ray_embed.encoder.build import layer_shapes
    from ray_embed.extractor import start_tensorflow

    _check_model(config)
    start_tensorflow(os.cpu_count() or 1, str(Path.cwd()))
    return layer_shapes(_encoder_spec(config, None))
