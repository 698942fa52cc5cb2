# SPDX-License-Identifier: Apache-2.0
"""All forms that a model may be given in; the first one that matches loads it."""

from ray_embed.encoders.forms import keras_file, keras_object, signature

FORMS = (signature.FORM, keras_file.FORM, keras_object.FORM)
