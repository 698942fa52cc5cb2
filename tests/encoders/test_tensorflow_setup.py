# SPDX-License-Identifier: Apache-2.0
"""What TensorFlow's libraries print while they are imported is hidden, unless that fails."""

import os
import sys

import pytest

from ray_embed.encoders.tensorflow_setup import hide_startup_messages


@pytest.fixture(autouse=True)
def not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


def test_remarks_are_hidden(capfd):
    with hide_startup_messages():
        os.write(2, b"oneDNN custom operations are on")
    os.write(2, b"after it")
    assert capfd.readouterr().err == "after it"


def test_remarks_are_shown_where_the_import_fails(capfd):
    with pytest.raises(ImportError), hide_startup_messages():
        os.write(2, b"no such library")
        raise ImportError
    assert capfd.readouterr().err == "no such library"


def test_remarks_are_shown_to_who_asks(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with hide_startup_messages():
        os.write(2, b"oneDNN custom operations are on")
    assert capfd.readouterr().err == "oneDNN custom operations are on"
