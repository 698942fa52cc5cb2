# SPDX-License-Identifier: Apache-2.0
"""Fold ``--preprocess`` into a graph of its own, for encoders that TensorFlow does not run."""

import hashlib
from dataclasses import dataclass

from ray_embed.encoders.features import load_preprocessing
from ray_embed.encoders.graph import fold
from ray_embed.encoders.model_errors import quote_error
from ray_embed.encoders.spec import EncoderSpec, TensorFlowGraph
from ray_embed.errors import InputError


@dataclass(frozen=True)
class FoldedPreprocessing:
    """The preprocessing of an encoder.

    Attributes:
        graph: its graph, or None if there is none: actors then call the function, if any.
        digests: digests of the graph without and with constants; None without preprocessing.
        warnings: what to tell the user.
    """

    graph: TensorFlowGraph | None = None
    digests: tuple[str, str] | None = None
    warnings: tuple[str, ...] = ()

    def join_digests(self, architecture: str, content: str) -> tuple[str, str]:
        """Return the digests of an encoder, with those of its preprocessing if it has any."""
        if self.digests is None:
            return architecture, content
        return _join(self.digests[0], architecture), _join(self.digests[1], content)


def fold_preprocessing(spec: EncoderSpec, shape: tuple[int, ...]) -> FoldedPreprocessing:
    """Return the preprocessing of an encoder as a graph, if it can be one.

    Args:
        spec: the request.
        shape: (N, H, W, C) of the batches.

    Raises:
        InputError: it cannot, and actors cannot import the function.
    """
    if spec.preprocess is None:
        return FoldedPreprocessing()
    prepare = load_preprocessing(spec)
    try:
        folded = fold(lambda images: [prepare(images)], shape, "float32")
    except Exception as error:
        reason = f"cannot be folded into a graph ({quote_error(error)[:200]})"
        if callable(spec.preprocess):
            raise InputError(
                f"--preprocess: TensorFlow does not run {spec.model_name}, and the function "
                f"{reason}; give it as 'module:callable', so that each process can import it, or "
                "use --mean and --std"
            ) from error
        return FoldedPreprocessing(
            None, ("", ""), (f"the preprocessing {reason}: each actor calls it",)
        )
    graph = TensorFlowGraph(folded.graph, folded.input_name, folded.output_names)
    return FoldedPreprocessing(graph, (folded.architecture, folded.content))


def _join(*digests: str) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
