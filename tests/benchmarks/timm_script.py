# SPDX-License-Identifier: Apache-2.0
"""The baseline of PyTorch: features of a timm model, extracted by a script as one writes it.

    python tests/benchmarks/timm_script.py NAME FOLDER OUT

A `DataLoader` with two workers reads the images with the model's own transform, and the model runs
in evaluation and inference mode. FOLDER has one sub-folder of images per class. OUT gets
features.npy, labels.npy and keys.json (relative paths, sorted). The last line of stdout is JSON:
the seconds of the loop, and the images per second once warm; see rates.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import rates
import timm
import torch
from torchvision.datasets import ImageFolder

BATCH = 64
WORKERS = 2


def main(name: str, folder: Path, out: Path) -> None:
    torch.manual_seed(0)  # The weights are random, as pretrained ones would be downloaded.
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(model)
    dataset = ImageFolder(str(folder), timm.data.create_transform(**config, is_training=False))
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)
    features, labels, completions = [], [], []
    start = time.perf_counter()
    with torch.inference_mode():
        for images, targets in loader:
            features.append(model(images).numpy())
            labels.append(targets.numpy())
            completions.append((time.perf_counter(), len(images)))
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "features.npy", np.concatenate(features))
    np.save(out / "labels.npy", np.concatenate(labels))
    keys = [Path(path).relative_to(folder).as_posix() for path, _ in dataset.samples]
    (out / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    result = {"images": len(keys), "seconds_loop": round(seconds, 3)}
    print(json.dumps({**result, "once_warm": rates.once_warm(completions)}))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python timm_script.py NAME FOLDER OUT")
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
