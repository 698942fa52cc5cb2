# SPDX-License-Identifier: Apache-2.0
"""The identity of a run: everything that decides the bytes of its parts."""

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ray_embed.config import RunConfig
from ray_embed.core.uri import redact_uri, remove_credentials
from ray_embed.encoders.frameworks.registry import get_framework
from ray_embed.encoders.spec import Encoder
from ray_embed.options import OnResume, find_options, get_default
from ray_embed.planning import Plan, SplitPlan

Identity = dict[str, Any]

# Packages whose version can change numbers or bytes.
PACKAGES = ("ray_embed", "tensorflow", "keras", "tf_keras", "openvino", "numpy", "pyarrow")


def read_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of the installed packages that can change numbers or bytes.

    Args:
        more: the packages to add to those of all runs.
    """
    versions = {}
    for name in (*PACKAGES, *more):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def make_identity(
    config: RunConfig, plan: Plan, encoder: Encoder, threads: int, pixels: Identity
) -> Identity:
    """Return the identity of a run as plain data, by name.

    The identity contains no URIs, modification times or hosts, because data may be moved.

    Args:
        config: the options.
        plan: the planned records.
        encoder: the encoder.
        threads: the number of threads per actor.
        pixels: how pixels are prepared, which the options and the encoder decide together.
    """
    resizing = ("pillow",) if config.antialias else ()
    return {
        "splits": [split.name for split in plan.splits],
        **{f"source {split.name}": _describe_source(config, split) for split in plan.splits},
        "model architecture": encoder.architecture,
        "model weights": encoder.weights_digest,
        "layers": [[o.layer, o.pool, o.dimension] for o in encoder.outputs],
        "image size": list(encoder.image_shape),
        "resized": config.image_size is not None,
        **pixels,
        "preprocess": name_object(config.preprocess),
        "engine": encoder.engine,
        "batch size": encoder.spec.batch_size,
        "threads per actor": threads,
        **_option_values(config),
        "versions": read_versions((*get_framework(encoder.framework).packages, *resizing)),
    }


def _option_values(config: RunConfig) -> dict[str, Any]:
    """Return the options whose own value is part of the identity, by name."""
    names = find_options(OnResume.SAME_VALUE)
    names += [
        name
        for name in find_options(OnResume.SAME_VALUE_IF_SET)
        if getattr(config, name) != get_default(name)
    ]
    values = {name.replace("_", " "): getattr(config, name) for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def _describe_source(config: RunConfig, split: SplitPlan) -> dict[str, Any]:
    common = {"label type": split.label_type, "shard size": split.shard_size}
    # Records that are planned while a sequential source is read have no digest.
    if split.digest is not None:
        return {"records": split.digest, "columns": list(split.extras), **common}
    return {
        "callable": split.root,
        "arguments": config.source_kwargs.get(split.name, {}),
        "image shape": list(split.image_shape or ()),
        **common,
    }


def name_object(value: Any) -> str | None:
    """Return the name of a callable or object for the run folder; a string is its own name."""
    if value is None or isinstance(value, str):
        return value and redact_uri(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}:{name}" if name else type(value).__name__


def to_plain_data(content: Identity) -> Identity:
    """Return an identity as it is stored and compared: JSON data without credentials in URIs."""
    text = remove_credentials(json.dumps(content, default=str))
    return json.loads(text)  # type: ignore[no-any-return]


def compute_fingerprint(content: Identity) -> str:
    """Return the fingerprint of an identity: the SHA-256 digest of its JSON."""
    text = json.dumps(to_plain_data(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def compute_thumbnail_fingerprint(content: Identity) -> str:
    """Return the fingerprint of what runs over the same records have in common, whatever the
    encoder."""
    return compute_fingerprint(
        {
            name: value
            for name, value in content.items()
            if name == "splits" or name.startswith("source ")
        }
    )


def list_differences(before: Identity, now: Identity) -> list[str]:
    """List the differences between two identities, one line each."""
    now = to_plain_data(now)
    lines = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{name}, {line}" for line in list_differences(old, new)]
        elif isinstance(old or new, dict):
            lines.append(f"{name}: was added" if old is None else f"{name}: was removed")
        else:
            lines.append(f"{name}: was {_shorten(old)}, is {_shorten(new)}")
    return lines


def _shorten(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text
