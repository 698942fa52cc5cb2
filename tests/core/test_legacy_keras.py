# SPDX-License-Identifier: Apache-2.0
"""Errors that TF_USE_LEGACY_KERAS=1 would have prevented advise it, and no others do."""

import sys
from pathlib import Path

import pytest

from ray_embed.core import legacy_keras, user_code
from ray_embed.errors import InputError, RunError, get_first_line, strip_ansi

tf = pytest.importorskip("tensorflow")

HELPED = {
    "name": "tf.keras.layers.experimental.preprocessing",
    "backend": "tf.keras.backend.learning_phase()",
    "module": "from tensorflow.keras.layers.experimental import preprocessing",
    "method": "tf.keras.layers.Dense(3).get_input_at(0)",
}
KERAS_3_ITSELF = {
    "utils": "import keras; keras.utils.generic_utils",
    "layers": "import keras; keras.layers.experimental",
}
NOT_HELPED = {
    "no such name": "tf.keras.layers.Nonsense",
    "no such module": "import tensorflow.keras.nonsense",
    "gone from both": "import tensorflow.keras.engine",
    "own attribute": "tf.keras.layers.Dense(3).nonsense",
    "own argument": "tf.keras.layers.Dense(3, nonsense=1)",
    "other": "1 / 0",
}


def error_of(code: str) -> BaseException:
    try:
        exec(code, {"tf": tf})
    except Exception as error:
        return error
    raise AssertionError(f"no error: {code}")


@pytest.mark.parametrize("case", HELPED)
def test_variable_is_suggested(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of(HELPED[case])
    assert "set TF_USE_LEGACY_KERAS=1" in legacy_keras.suggest_legacy_keras(error)
    assert "import keras" not in legacy_keras.suggest_legacy_keras(error)
    with (
        pytest.raises(InputError, match="TF_USE_LEGACY_KERAS=1"),
        legacy_keras.explain_legacy_errors(),
    ):
        raise InputError("--model m: fails") from error
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert legacy_keras.suggest_legacy_keras(error) == ""


@pytest.mark.parametrize("case", KERAS_3_ITSELF)
def test_code_that_imports_keras_gets_a_suggestion(case: str) -> None:
    advice = legacy_keras.suggest_legacy_keras(error_of(KERAS_3_ITSELF[case]))
    assert "`import keras`" in advice
    assert "SM_FRAMEWORK=tf.keras" in advice


@pytest.mark.parametrize("case", NOT_HELPED)
def test_no_suggestion_where_it_would_not_help(case: str) -> None:
    error = error_of(NOT_HELPED[case])
    assert legacy_keras.suggest_legacy_keras(error) == ""
    with pytest.raises(InputError, match=r"^as it was$"), legacy_keras.explain_legacy_errors():
        raise InputError("as it was") from error


@pytest.mark.parametrize(
    "code",
    [
        "from tensorflow.keras.layers.experimental import preprocessing",
        "import tensorflow as tf\nclass Old(tf.keras.layers.experimental.RandomFourier): pass",
    ],
)
def test_suggestion_for_a_failing_user_module_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "old_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught, legacy_keras.explain_legacy_errors():
        user_code.import_module("old_package", "--import old_package")
    sys.modules.pop("old_package", None)
    assert str(caught.value).count("TF_USE_LEGACY_KERAS=1") == 1
    assert "install it" not in str(caught.value)


def test_colors_of_keras_are_removed_from_messages() -> None:
    colored = "\x1b[1mException encountered when calling Net.call().\x1b[0m\x1b[31;1m bad\x1b[K"
    plain = "Exception encountered when calling Net.call(). bad"
    assert strip_ansi(colored) == plain
    assert str(InputError(f"--model m: {colored}")) == f"--model m: {plain}"
    assert str(RunError(colored)) == plain
    assert get_first_line(ValueError(colored)) == plain
