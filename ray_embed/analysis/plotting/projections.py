# SPDX-License-Identifier: Apache-2.0
"""Map features to two or three dimensions, and measure how far each map can be trusted."""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array, Matrix
from ray_embed.core.triton import block_triton

# How many components t-SNE and UMAP use as input.
DIMENSIONS = 50
PERPLEXITY, NEIGHBORS, MINIMAL_DISTANCE = 30, 15, 0.1
# With fewer points than this, t-SNE and UMAP show nothing useful.
FEWEST = 10
# Quality is measured on at most this many records, as it needs the distances of all pairs.
EVALUATED = 2_000
_EVALUATED_NEIGHBORS = 15
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Map:
    """A map of records: `name`, `points` (n, 2 or 3) float32, and its quality.

    `trustworthiness` and `continuity` are from 0 to 1, computed on `evaluated` of the records. They
    are None if there are too few records.
    """

    name: str
    points: Matrix
    trustworthiness: float | None
    continuity: float | None
    evaluated: int


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def compute_projections(components: Matrix, size: int) -> dict[str, Matrix]:
    """Compute maps by name: `pca`, and if there are enough points, `tsne` and `umap`.

    Args:
        components: (n, k) principal components. The first `size` of them are the map `pca`.
        size: the dimensions of the maps, 2 or 3.

    Returns:
        (n, size) float32 each. `umap` is left out if umap-learn is not installed.
    """
    components = components[:, :DIMENSIONS]
    missing = max(0, size - components.shape[1])
    components = np.pad(components, ((0, 0), (0, missing)))
    projections = {"pca": components[:, :size]}
    if len(components) >= FEWEST and np.ptp(components[:, 0]) > 0:
        projections["tsne"] = run_tsne(components, size)
        if has_umap():
            projections["umap"] = run_umap(components, size)
    return projections


def run_tsne(components: Matrix, size: int) -> Matrix:
    """Map (n, k) to (n, size) float32 by t-SNE, reproducibly (van der Maaten and Hinton 2008).

    It starts from the first components (Kobak and Berens 2019).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    model = TSNE(size, perplexity=perplexity, init="pca", random_state=_SEED)
    # With several threads, numbers are added in a varying order, and the map changes each time.
    with threadpool_limits(1):
        points: Matrix = model.fit_transform(components).astype(np.float32)
    return points


def run_umap(components: Matrix, size: int) -> Matrix:
    """Map (n, k) to (n, size) float32 by UMAP, reproducibly (McInnes, Healy, Melville 2018)."""
    # umap-learn imports PyTorch if it is installed.
    block_triton()
    with warnings.catch_warnings(), _without_tensorflow():
        # It warns about the next version of a library.
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbors = min(NEIGHBORS, len(components) - 1)
        # With more than one thread, the map would change each time.
        model = UMAP(neighbors, size, min_dist=MINIMAL_DISTANCE, random_state=_SEED, n_jobs=1)
        points: Matrix = model.fit_transform(components).astype(np.float32)
    return points


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Hide TensorFlow from umap-learn, which would import it for parametric UMAP, unused here."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


def evaluate_map(name: str, features: Array, points: Matrix) -> Map:
    """Measure the quality of a map.

    Trustworthiness is low if neighbors on the map are not neighbors in feature space. Continuity is
    low if neighbors in feature space are torn apart on the map (Venna and Kaski 2001). A value of 1
    is best; a random map scores about 0.5. Both use L2 distances, the 15 nearest neighbors, and a
    random sample of at most `EVALUATED` records.

    Args:
        name: the name of the map.
        features: (n, D), the features of the records.
        points: (n, 2 or 3).
    """
    from sklearn.manifold import trustworthiness

    chosen = np.arange(len(features))
    if len(features) > EVALUATED:
        chosen = np.random.default_rng(_SEED).permutation(len(features))[:EVALUATED]
    k = min(_EVALUATED_NEIGHBORS, (len(chosen) - 1) // 2)
    high, low = features[chosen].astype(np.float64), points[chosen].astype(np.float64)
    return Map(
        name=name,
        points=points,
        trustworthiness=float(trustworthiness(high, low, n_neighbors=k)) if k > 0 else None,
        continuity=float(trustworthiness(low, high, n_neighbors=k)) if k > 0 else None,
        evaluated=len(chosen),
    )
