# SPDX-License-Identifier: Apache-2.0
"""All forms in which a model may be given. The first one that matches loads the model."""

from ray_embed.encoders.forms import (
    kept_model,
    keras_application,
    keras_file,
    keras_hub_preset,
    keras_object,
    signature,
)

FORMS = (
    kept_model.FORM,
    signature.FORM,
    keras_application.FORM,
    keras_hub_preset.FORM,
    keras_file.FORM,
    keras_object.FORM,
)
