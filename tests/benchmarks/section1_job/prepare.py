# SPDX-License-Identifier: Apache-2.0
"""What the acceptance job starts from, and what has to come out of it.

    python tests/benchmarks/section1_job/prepare.py DIR [--valid 300] [--test 200]

writes into DIR

    valid/ test/                 JPEG files of varied sizes in class folders
    weights_forward/             forward_model.save_weights("DIR/weights_forward/") of Keras 2
    weights_outer/enc            save_weights of the whole auto-encoder, optimizer included
    expected_valid.npy           plain forward_model(img, training=False) + average pooling
    expected_valid.json          {"keys": [path below the split's folder, …], "labels": [int, …]}
    expected_test.npy expected_test.json

Row k of the array belongs to entry k of the lists; both are in the order of my_project.dataset,
whose img_path is the folder as given to it, a slash, and the key here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import tf_keras as keras
from my_project import Auto_Encoder, dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corpus import make_jpegs  # the folder above

SHAPE = (240, 240, 3)
SIDES = (120, 400)  # smallest and largest height and width of the pictures
CLASSES = 6
BATCH = 16


def trained(folder: Path) -> Auto_Encoder:
    """The seeded auto-encoder after one small step, so that no weight is as initialised."""
    keras.utils.set_random_seed(0)
    model = Auto_Encoder(SHAPE)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse")
    pairs = dataset(str(folder)).shuffle(64, seed=0).map(lambda img, gt, path: (img, img))
    model.fit(pairs.batch(8).take(1), verbose=0)
    return model


def write_expected(model: Auto_Encoder, root: Path, split: str) -> tuple[int, ...]:
    """The features of a split by a plain call, their keys and labels."""
    folder = root / split
    pool = keras.layers.GlobalAveragePooling2D()
    features, keys, labels = [], [], []
    for img, gt, img_path in dataset(str(folder)).batch(BATCH):
        features.append(pool(model.forward_model(img, training=False)).numpy())
        keys += [Path(path.decode()).relative_to(folder).as_posix() for path in img_path.numpy()]
        labels += gt.numpy().tolist()
    array = np.concatenate(features)
    np.save(root / f"expected_{split}.npy", array)
    told = {"keys": keys, "labels": labels}
    (root / f"expected_{split}.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
    return array.shape


def prepare(root: Path, valid: int = 300, test: int = 200) -> None:
    """Write everything into root; what is there is written anew, the pictures are kept."""
    root.mkdir(parents=True, exist_ok=True)
    for split, n, seed in (("valid", valid, 1), ("test", test, 2)):
        make_jpegs(root / split, n, size=SIDES, classes=CLASSES, seed=seed)
    model = trained(root / "valid")
    for folder in ("weights_forward", "weights_outer"):
        (root / folder).mkdir(exist_ok=True)
    model.forward_model.save_weights(f"{root}/weights_forward/")
    model.save_weights(f"{root}/weights_outer/enc")
    for split in ("valid", "test"):
        print(f"{split}: features {write_expected(model, root, split)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--valid", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    given = parser.parse_args()
    prepare(given.folder, given.valid, given.test)


if __name__ == "__main__":
    main()
