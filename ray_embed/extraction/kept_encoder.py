# SPDX-License-Identifier: Apache-2.0
"""Take the encoder of a resumed run from the run folder, if its model is gone or far away.

Trainings delete old checkpoints, and a library may have to download a model again. The folder holds
all that the actors need.
"""

from dataclasses import replace
from pathlib import Path

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core.model_names import names_model
from ray_embed.core.uri import is_uri
from ray_embed.encoders import artifacts
from ray_embed.encoders.spec import Encoder, EncoderSpec
from ray_embed.runs import identity
from ray_embed.runs.workspace import Target, choose_default_out
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder

# All options that the encoder depends on. If one has changed, the model is needed.
_OPTIONS = (
    *("model", "model_kwargs", "submodel", "weights", "tags", "signature", "imports"),
    *("image_size", "layers", "pool", "preprocess", "engine", "precision"),
)
_GONE = "the file of the model is gone: the run goes on with the encoder in its folder"


def may_have_kept_encoder(config: RunConfig) -> bool:
    """Return whether the model is no file that exists, and the run folder holds a run."""
    model = config.model
    if not isinstance(model, str) or is_callable_reference(model) or config.overwrite:
        return False
    if not names_model(model) and (is_uri(model) or Path(model).exists()):
        return False
    return manifest.is_run(Folder.open(config.out or choose_default_out(config)))


def read_kept_encoder(config: RunConfig, target: Target, spec: EncoderSpec) -> Encoder | None:
    """Return the encoder in the folder of a run that goes on without its model.

    Args:
        config: the options.
        target: the run folder.
        spec: the requested encoder.

    Returns:
        None if the file exists, if the options ask for another encoder, or if the engine calls the
        model itself.

    Raises:
        InputError: the saved encoder is damaged.
    """
    if not target.is_resumed or not may_have_kept_encoder(config):
        return None
    recorded = (target.before or {})["config"]
    asked = identity.to_plain_data({name: getattr(config, name) for name in _OPTIONS})
    asked["model"] = _find_recorded(config.model, recorded.get("model"))
    asked["preprocess"] = identity.name_object(config.preprocess)
    if any(recorded.get(name) != value for name, value in asked.items()):
        return None
    encoder = artifacts.load_encoder(target.folder, spec)
    if encoder is None:
        return None
    named = encoder.spec.kept.notes if encoder.spec.kept is not None else ()
    is_named = names_model(asked["model"])
    return replace(encoder, notes=named if is_named else (_GONE, *named))


def _find_recorded(model: str, recorded: str) -> str:
    """Return the name of a model as the run folder has it: folders are recorded without prefix."""
    name = identity.name_object(model) or ""
    return recorded if names_model(name) and name.partition(":")[2] == recorded else name
