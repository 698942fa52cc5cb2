# SPDX-License-Identifier: Apache-2.0
"""PyTorch: run an exported program on the CPU, or on a GPU if PyTorch has one."""

import contextlib
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.engines.preprocessing import preprocess_before
from ray_embed.encoders.spec import Encoder


def has_gpu() -> bool:
    """Return whether PyTorch has a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def _convert(encoder: Encoder, program: Any) -> bytes:
    from ray_embed.encoders.torch_models.archive import write_program

    return write_program(program)


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    import torch

    from ray_embed.encoders.torch_models.archive import read_program

    program = read_program(encoder.graph or b"")
    device = "cuda" if has_gpu() else "cpu"
    torch.set_num_threads(threads)
    module = _to_gpu(program) if device == "cuda" else program.module()
    lowered = encoder.spec.precision == "bfloat16"

    def run(images: Array) -> list[Array]:
        precision: Any = contextlib.nullcontext()
        if lowered:
            precision = torch.autocast(device, torch.bfloat16)
        with torch.inference_mode(), precision:
            features = module(torch.from_numpy(np.array(images)).to(device))
        return [value.float().cpu().numpy() for value in features]

    return preprocess_before(encoder, OpenEngine(run))


def _to_gpu(program: Any) -> Any:
    import torch
    from torch.export.passes import move_to_device_pass

    # TensorFloat-32 rounds the inputs of float32 products to 10 bits.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    module = move_to_device_pass(program, "cuda").module()
    return module.to(memory_format=torch.channels_last)


ENGINE = Engine(
    name="torch",
    option="torch",
    open=_open,
    needs_graph=True,
    convert=_convert,
    lowers_precision=True,
)
