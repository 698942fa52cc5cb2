# SPDX-License-Identifier: Apache-2.0
"""Run ONNX models in onnxruntime."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.model_errors import quote_error
from ray_embed.encoders.onnx_models.graph import with_outputs
from ray_embed.errors import InputError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# onnxruntime's number for messages about errors that it cannot go on from.
_FATAL = 4


def open_session(model: bytes, threads: int, provider: str = CPU) -> Any:
    """Return a session of onnxruntime for a model, with the default optimizations of its graph.

    Args:
        model: the serialized model.
        threads: the number of threads that share the work of a call.
        provider: CPU or CUDA.

    Raises:
        Exception: whatever onnxruntime raises for a model that it cannot run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.use_deterministic_compute = True
    providers: list[Any] = [CPU]
    if provider == CUDA:
        # TensorFloat-32 rounds the inputs of float32 products to 10 bits.
        exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        providers = [(CUDA, exact), CPU]
    return onnxruntime.InferenceSession(model, options, providers=providers)


def has_gpu() -> bool:
    """Return whether there is a GPU, and onnxruntime was built for it."""
    return has_cuda() and finds_gpu()


def has_cuda() -> bool:
    """Return whether onnxruntime was built for NVIDIA GPUs."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def finds_gpu() -> bool:
    """Return whether TensorFlow, which decodes the images, has a GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        # TensorFlow need not be imported to know that it sees none.
        return False
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


class PlainModel:
    """A model of one input that onnxruntime calls on the CPU.

    Args:
        where: what error messages name.
        model: the model.
        names: the tensors to return.
        batch_size: the batch size that the model is fixed to, or None if it takes any.
        threads: the number of threads.

    Raises:
        InputError: onnxruntime cannot run the model.
    """

    def __init__(
        self, where: str, model: Any, names: Sequence[str], batch_size: int | None, threads: int
    ) -> None:
        self._where, self._names, self._batch_size = where, list(names), batch_size
        try:
            self._session = open_session(with_outputs(model, names), threads)
        except Exception as error:
            raise InputError(
                f"{where}: onnxruntime cannot load it: {quote_error(error)[:800]}"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def call(self, images: Array) -> dict[str, Array]:
        """Return the tensors for images in the layout and type of the model's input.

        Raises:
            InputError: the model fails.
        """
        count = len(images)
        try:
            calls = [
                self._session.run(self._names, {self._input: batch})
                for batch in _split(images, self._batch_size)
            ]
        except Exception as error:
            raise InputError(
                f"{self._where}: it fails on a batch of the shape {images.shape}: "
                f"{quote_error(error)[:800]}\ncheck --image-size"
            ) from error
        if len(calls) == 1:
            return dict(zip(self._names, calls[0], strict=True))
        joined = [np.concatenate(values)[:count] for values in zip(*calls, strict=True)]
        return dict(zip(self._names, joined, strict=True))


def _split(images: Array, size: int | None) -> Iterator[Array]:
    """Yield batches of a size, the last one filled up with zeros; None for a single batch."""
    if size is None or size == len(images):
        yield images
        return
    for start in range(0, len(images), size):
        batch = np.zeros((size, *images.shape[1:]), images.dtype)
        part = images[start : start + size]
        batch[: len(part)] = part
        yield batch
