# SPDX-License-Identifier: Apache-2.0
"""Images and labels are found by the names that people give to arrays."""

import pytest

from ray_embed.errors import InputError
from ray_embed.sources.array_names import choose_arrays
from ray_embed.sources.split_names import find_split

KERAS = ["x_train", "y_train", "x_test", "y_test"]
MEDMNIST = [f"{s}_{what}" for s in ("train", "val", "test") for what in ("images", "labels")]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["images", "labels"], "anything", ("images", "labels")),
        (["images"], "valid", ("images", None)),
        (["x", "y"], "valid", ("x", "y")),
        (["X", "y"], "valid", ("X", "y")),
        (["data", "target", "note"], "a", ("data", "target")),
        (KERAS, "train", ("x_train", "y_train")),
        (KERAS, "test", ("x_test", "y_test")),
        (MEDMNIST, "valid", ("val_images", "val_labels")),
        (MEDMNIST, "Validation", ("val_images", "val_labels")),
        (
            ["train/images", "train/labels", "test/images"],
            "train",
            ("train/images", "train/labels"),
        ),
        (["train/images", "train/labels", "test/images"], "test", ("test/images", None)),
        (["x_test", "y_test"], "mine", ("x_test", "y_test")),
        (["images", "labels", "x_train"], "mine", ("images", "labels")),
    ],
)
def test_pair_is_chosen_by_name_and_split(names, split, chosen):
    assert choose_arrays(names, split, None, None, "a.npz") == chosen


def test_arrays_that_are_asked_for_are_taken():
    assert choose_arrays(["p", "q", "images"], "s", "p", "q", "a.npz") == ("p", "q")
    assert choose_arrays(["p", "q", "images"], "s", None, "q", "a.npz") == ("images", "q")
    assert choose_arrays(["p", "q"], "s", "p", None, "a.npz") == ("p", None)


@pytest.mark.parametrize(
    ("names", "split", "image", "tokens"),
    [
        (KERAS, "valid", None, ["x_train, x_test", "--source train=a.npz", "--image-column"]),
        (["p", "q"], "s", None, ["no array 'images'", "p, q", "--image-column"]),
        (["p", "q"], "s", "r", ["no array 'r'", "p, q"]),
        ([], "s", None, ["no arrays"]),
    ],
)
def test_missing_or_ambiguous_arrays_are_refused(names, split, image, tokens):
    with pytest.raises(InputError) as caught:
        choose_arrays(names, split, image, None, "a.npz")
    for token in ["a.npz", *tokens]:
        assert token in str(caught.value)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train", "test"], "test", "test"),
        (["Train", "validation"], "valid", "validation"),
        (["val", "validation"], "valid", None),
        (["train", "test"], "mine", None),
        (["fold1", "fold2"], "fold2", "fold2"),
    ],
)
def test_split_is_found_by_its_name_or_an_alias(names, split, expected):
    assert find_split(names, split) == expected
