# SPDX-License-Identifier: Apache-2.0
"""All forms in which a model may be given. The first one that matches loads the model."""

from ray_embed.encoders.forms import keras_file, keras_object, signature

FORMS = (signature.FORM, keras_file.FORM, keras_object.FORM)
