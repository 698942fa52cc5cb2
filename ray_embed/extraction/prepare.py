# SPDX-License-Identifier: Apache-2.0
"""Validate everything before the first shard, then write the initial files of the run folder."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_embed import planning
from ray_embed._version import __version__
from ray_embed.config import RunConfig, is_callable_reference, make_absolute, names_data_set
from ray_embed.core import user_code
from ray_embed.core.console import Say, say, say_after
from ray_embed.core.model_names import names_model
from ray_embed.core.uri import is_uri, redact_uri
from ray_embed.encoders import artifacts
from ray_embed.encoders.build import build as build_encoder
from ray_embed.encoders.frameworks.registry import find_framework
from ray_embed.encoders.spec import Build, Encoder, EncoderSpec, Weights
from ray_embed.errors import InputError
from ray_embed.extraction import pixels
from ray_embed.extraction.dataset_reader import DatasetReader
from ray_embed.extraction.kept_encoder import read_kept_encoder
from ray_embed.extraction.plan_rows import check_indexed, discard_unplanned_shards
from ray_embed.extraction.portable import choose_reader
from ray_embed.options import RANDOM, OnResume, find_options
from ray_embed.planning import Plan
from ray_embed.runs import identity as identity_module
from ray_embed.runs.workspace import Target
from ray_embed.runtime.session import RunSession
from ray_embed.sources.base import ImageReader, Source, SourceInfo
from ray_embed.sources.open import select_datasets
from ray_embed.storage import manifest
from ray_embed.storage.download import find_files
from ray_embed.storage.filesystem import Folder

# Seconds that a library may take to load a model before the user is told what the run waits for.
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """The validated state of a run before anything is written.

    `config` has the pixel options that the encoder brings. `dataset_readers` read the sequential
    sources, by split name. `readers` open the images in the actors, by split ordinal. `say` prints
    a line about the run.
    """

    config: RunConfig
    target: Target
    plan: Plan
    encoder: Encoder
    identity: identity_module.Identity
    dataset_readers: dict[str, DatasetReader]
    readers: tuple[ImageReader, ...]
    say: Say = say

    @property
    def folder(self) -> Folder:
        """The run folder."""
        return self.target.folder

    @property
    def fingerprint(self) -> str:
        """The hash that ties parts to this run."""
        return identity_module.compute_fingerprint(self.identity)

    @property
    def thumbnail_fingerprint(self) -> str:
        """The hash that ties thumbnails to the records of this run."""
        if self.target.is_resumed:
            return manifest.get_thumbnail_fingerprint(self.target.before or {})
        return identity_module.compute_thumbnail_fingerprint(self.identity)


@dataclass(frozen=True)
class RunRequest:
    """A run to prepare: its options, its folder, and what prints a line about it."""

    config: RunConfig
    target: Target
    say: Say = say


@dataclass(frozen=True)
class _PlannedRecords:
    """The planned records, and the readers of their images by split ordinal."""

    plan: Plan
    dataset_readers: dict[str, DatasetReader]
    readers: tuple[ImageReader, ...]


def check_model(config: RunConfig) -> None:
    """Quickly check that the model file exists and has a supported format.

    Raises:
        InputError: the file does not exist or is not a model.
    """
    for option, path in (("--model", config.model), ("--weights", config.weights)):
        if isinstance(path, str) and is_uri(path):
            find_files(path, option)
    if isinstance(config.model, str) and is_uri(config.model):
        return
    spec = make_encoder_spec(config, None, 1)
    if isinstance(config.model, str):
        # Errors name the path that was given.
        spec = replace(spec, model=config.model)
    find_framework(spec).check(spec)


def prepare(
    requests: Sequence[RunRequest],
    sources: list[Source],
    dataset_readers: dict[str, DatasetReader],
    scratch: Folder,
    session: RunSession,
    builds: Sequence[Build] = (),
) -> Iterator[PreparedRun | InputError]:
    """Plan the records while building the encoders, and compare both with earlier runs.

    Args:
        requests: the runs. They have the same records.
        sources: the opened sources.
        dataset_readers: the readers of the sequential ones, by split.
        scratch: temporary folder for the plan.
        session: the session that runs the actors.
        builds: each starts a build in a process of its own; none to build in an actor.

    Yields:
        Each run in turn, or the error that concerns it alone, such as weights that do not fit.
        Nothing was written to its run folder.

    Raises:
        InputError: a source is invalid.
    """
    config = requests[0].config
    infos = {split: reader.describe() for split, reader in dataset_readers.items()}
    batch_size = config.batch_size or session.resources.batch_size
    shape = find_image_shape(sources, infos)
    # Each process builds one encoder after the other, and the first while the records are planned.
    building = (
        _start_building(
            request,
            make_spec_for_run(request.config, shape, batch_size, request.target),
            session,
            build,
        )
        for request, build in zip(requests, itertools.cycle(builds or [None]), strict=False)
    )
    waiting = deque(itertools.islice(building, len(builds) or 1))
    planned = _plan_records(config, sources, dataset_readers, infos, scratch, session, batch_size)
    for request in requests:
        wait_for_encoder = waiting.popleft()
        try:
            encoder = _wait(wait_for_encoder, request.config)
            prepared = _check_run(request, planned, encoder, session.resources.cpus)
            if request.target.is_resumed:
                _raise_if_different_run(prepared, scratch)
        except InputError as error:
            yield error
        else:
            yield prepared
        waiting.extend(itertools.islice(building, 1))


def _wait(wait_for_encoder: Callable[[], Encoder], config: RunConfig) -> Encoder:
    model = config.model
    if not isinstance(model, str) or not names_model(model):
        return wait_for_encoder()
    waiting = f"--model {model}: waiting for its library, which downloads what it has not cached"
    with say_after(_PATIENCE_SECONDS, waiting):
        return wait_for_encoder()


def _plan_records(
    config: RunConfig,
    sources: list[Source],
    dataset_readers: dict[str, DatasetReader],
    infos: dict[str, SourceInfo],
    scratch: Folder,
    session: RunSession,
    batch_size: int,
) -> _PlannedRecords:
    readers = {source.split: source.reader() for source in sources}
    for source in select_datasets(sources):
        readers[source.split], infos[source.split] = choose_reader(
            source, infos[source.split], config.limit, session
        )
    plan = planning.make_plan(
        sources,
        infos,
        scratch,
        shard_size=config.shard_size,
        batch_size=batch_size,
        limit=config.limit,
    )
    return _PlannedRecords(plan, dataset_readers, tuple(readers.values()))


def _check_run(
    request: RunRequest, planned: _PlannedRecords, encoder: Encoder, threads: int
) -> PreparedRun:
    """Check that an encoder takes the planned images, and say what was decided.

    Raises:
        InputError: it does not.
    """
    config, splits = pixels.adopt_options(request.config, encoder), planned.plan.splits
    pixels.check(config, splits, encoder)
    explained = pixels.explain(config, splits, encoder)
    notes = (*planned.plan.notes, *encoder.notes, *explained.notes)
    for line in (*_describe_skipped(planned.plan), *notes):
        request.say(line)
    for text in (*encoder.warnings, *explained.warnings):
        request.say(f"warning: {text}")
    identity = identity_module.make_identity(
        config, planned.plan, encoder, threads, pixels.make_identity(config, splits, encoder)
    )
    return PreparedRun(
        config=config,
        target=request.target,
        plan=planned.plan,
        encoder=encoder,
        identity=identity_module.to_plain_data(identity),
        dataset_readers=planned.dataset_readers,
        readers=planned.readers,
        say=request.say,
    )


def _describe_skipped(planned: Plan) -> list[str]:
    return [
        f"{split.name}: skipped "
        + ", ".join(f"{count} {what}" for what, count in split.skipped.items())
        for split in planned.splits
        if split.skipped
    ]


def find_image_shape(
    sources: Sequence[Source], infos: Mapping[str, SourceInfo]
) -> tuple[int, int, int] | None:
    """Return the image shape of the first array source, or None if all sources are image files.

    Args:
        sources: the sources.
        infos: the properties of the sequential sources, by split.
    """
    described = [*(source.info for source in sources), *infos.values()]
    shapes = [info.image_shape for info in described if info and info.image_shape]
    return next(iter(shapes), None)


def make_encoder_spec(
    config: RunConfig, shape: tuple[int, int, int] | None, batch_size: int
) -> EncoderSpec:
    """Return the encoder specification. `shape` is the image shape of an array source."""
    model = config.model
    if isinstance(model, str) and not is_callable_reference(model) and not names_model(model):
        model = _resolve_path(model)
    weights = config.weights
    if weights not in (None, RANDOM):
        weights = _resolve_path(weights)
    return EncoderSpec(
        model=model,
        folder=str(Path.cwd()),
        model_kwargs=config.model_kwargs,
        imports=config.imports,
        submodel=config.submodel,
        weights=weights,
        layers=config.layers,
        pool=config.pool,
        image_size=config.image_size,
        image_shape=shape,
        preprocess=config.preprocess,
        engine=config.engine,
        precision=config.precision,
        batch_size=batch_size,
        tags=config.tags,
        signature=config.signature,
        pixel_options=pixels.list_given_options(config),
    )


def make_spec_for_run(
    config: RunConfig, shape: tuple[int, int, int] | None, batch_size: int, target: Target
) -> EncoderSpec:
    """Return the encoder specification for a run folder, with the model of a library that it keeps.

    Raises:
        InputError: that model is damaged.
    """
    spec = make_encoder_spec(config, shape, batch_size)
    before = target.before or {}
    if not target.is_resumed or before["model"] != identity_module.name_object(config.model):
        return spec
    if not isinstance(config.model, str) or not names_model(config.model):
        return spec
    asked = {"image_size": config.image_size, "model_kwargs": config.model_kwargs}
    if any(before["config"].get(name) != value for name, value in _plain(asked).items()):
        return spec
    return replace(spec, kept=artifacts.read_kept_model(target.folder))


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return identity_module.to_plain_data(content)


def _resolve_path(path: str) -> str:
    # Actors have another working directory.
    return path if is_uri(path) else str(Path(path).absolute())


def _start_building(
    request: RunRequest, spec: EncoderSpec, session: RunSession, build: Build | None
) -> Callable[[], Encoder]:
    """Start building the encoder, and return a function that waits for the result.

    If the file of its model is gone, the encoder in the run folder is the result.

    Python objects are built in this process. With GPUs, the encoder is built in an actor, because
    engines are compared on the device.
    """
    kept = read_kept_encoder(request.config, request.target, spec)
    if kept is not None:
        return lambda: kept
    weights = read_saved_weights(spec, request.target)
    if not isinstance(spec.model, str) or callable(spec.preprocess):
        return functools.partial(build_encoder, spec, 1, weights)
    if build is not None and not session.resources.gpus:
        return build(spec, session.resources.cpus, weights)
    return session.call(build_encoder, spec, session.resources.cpus, weights)


def read_saved_weights(spec: EncoderSpec, target: Target) -> Weights | None:
    """Return the weights that an earlier start of the run saved, if the model has none of its own.

    Raises:
        InputError: they are damaged.
    """
    model = spec.model
    makes_model = (
        is_callable_reference(model) if isinstance(model, str) else user_code.is_factory(model)
    )
    name = identity_module.name_object(model)
    is_same = target.is_resumed and (target.before or {})["model"] == name
    if is_same and (makes_model or spec.kept is not None) and spec.weights is None:
        return artifacts.read_weights(target.folder)
    return None


def _raise_if_different_run(prepared: PreparedRun, scratch: Folder) -> None:
    before = (prepared.target.before or {})["identity"]
    differences = identity_module.list_differences(before, prepared.identity)
    if not differences:
        return
    if kept_plan := read_kept_plan(prepared.folder):
        kept_splits = {split.name: split for split in kept_plan.splits}
        for split in prepared.plan.splits:
            old = kept_splits.get(split.name)
            if old and old.digest and split.digest and old.digest != split.digest:
                where = planning.describe_difference(prepared.folder, scratch, old, split)
                differences.append(f"first difference in {split.name}: {where}")
    raise InputError(
        f"--out {prepared.target.out}: the folder contains a different run. Differences:\n  "
        + "\n  ".join(differences)
        + "\nuse another --out, or --overwrite to start over"
    )


def write_run_folder(prepared: PreparedRun, scratch: Folder) -> None:
    """Write the manifest, the encoder and the plan to the run folder, or complete those of an
    earlier run.

    Raises:
        InputError: the folder is not writable.
    """
    folder, config = prepared.folder, prepared.config
    if prepared.target.is_resumed:
        _renew_run_folder(config, prepared, scratch)
        return
    # Either --overwrite was given, or an earlier run stopped before this point.
    manifest.delete_run(folder)
    # Write a marker first, so that the folder is recognized as ours if this is interrupted.
    manifest.write_run(folder, {}, __version__)
    artifacts.save_encoder(folder, prepared.encoder)
    planning.copy_records(prepared.plan, scratch, folder)
    planning.save(folder, prepared.plan)
    manifest.write_run(folder, _make_manifest(config, prepared), __version__)


def read_kept_plan(folder: Folder) -> Plan | None:
    """Read the original plan of the run, or return None if it is damaged."""
    try:
        return planning.load(folder)
    except InputError as error:
        say(str(error))
        return None


def _renew_run_folder(config: RunConfig, prepared: PreparedRun, scratch: Folder) -> None:
    """Update the run folder of an earlier run: repair damaged files, and record moved sources and
    changed options.

    Raises:
        InputError: a file has changed since the run was started.
    """
    folder, fresh = prepared.folder, prepared.plan
    before = prepared.target.before or {}
    kept = read_kept_plan(folder)
    check_indexed(folder, fresh, kept, prepared.readers)
    recorded = _record_options(config, prepared)
    changed = {
        name: recorded[name]
        for name in find_options(OnResume.MAY_CHANGE)
        if before["config"].get(name) != recorded[name]
    }
    if changed:
        # Later commands use the values in the manifest.
        asked = before["config"] | changed
        content = {name: value for name, value in before.items() if name != "ray_embed"}
        manifest.write_run(folder, content | {"config": asked}, __version__)
    planning.renew_records(fresh, kept or fresh, scratch, folder)
    for split in kept.splits if kept else ():
        if split.records is not None and fresh.splits[split.ordinal].records is None:
            fresh = fresh.with_records(split.ordinal, split.records)
    if fresh != kept:
        planning.save(folder, fresh)
    discard_unplanned_shards(folder, fresh, prepared.readers)
    if not artifacts.is_intact(folder):
        say(f"{folder.display_path('encoder')}: damaged, writing it again")
        artifacts.save_encoder(folder, prepared.encoder)


def _record_options(config: RunConfig, prepared: PreparedRun) -> dict[str, Any]:
    """Return the resolved options for ``run.json``, without passwords."""
    options = config.model_dump(mode="python", exclude={"sources", "overwrite"})
    roots = {split.name: split.root for split in prepared.plan.splits}
    if "label_column" not in config.model_fields_set:
        # An option that is given forbids other names of the labels.
        options["label_column"] = None
    options |= {
        "model": identity_module.name_object(config.model),
        "preprocess": identity_module.name_object(config.preprocess),
        "batch_size": prepared.encoder.spec.batch_size,
        "out": redact_uri(prepared.target.out),
        "address": None if config.address is None else redact_uri(config.address),
        "sources": {
            name: _name_source(source) or roots[name] for name, source in config.sources.items()
        },
    }
    return identity_module.to_plain_data(options)


def _name_source(source: Any) -> str | None:
    """Return what opens a source again, such as the listing; None for a Python object."""
    if not isinstance(source, str):
        return None
    if names_data_set(source):
        return make_absolute(source, Path.cwd())
    if is_callable_reference(source):
        return source
    return redact_uri(source) if is_uri(source) else str(Path(source).absolute())


def _make_manifest(config: RunConfig, prepared: PreparedRun) -> dict[str, Any]:
    return {
        "fingerprint": prepared.fingerprint,
        "thumbnail_fingerprint": prepared.thumbnail_fingerprint,
        "model": identity_module.name_object(config.model),
        "config": _record_options(config, prepared),
        "encoder": artifacts.describe_encoder(prepared.encoder),
        "versions": prepared.identity["versions"],
        "identity": prepared.identity,
    }
