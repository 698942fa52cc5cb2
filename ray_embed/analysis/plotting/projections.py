# SPDX-License-Identifier: Apache-2.0
"""Map features to two or three dimensions, and measure how far each map is to be trusted."""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array, Matrix

# t-SNE and UMAP start from so many components.
DIMENSIONS = 50
PERPLEXITY, NEIGHBORS, MINIMAL_DISTANCE = 30, 15, 0.1
# With fewer points, t-SNE and UMAP show nothing.
FEWEST = 10
# Both measures need all distances between the records that they are computed on.
EVALUATED = 2_000
_EVALUATED_NEIGHBORS = 15
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Map:
    """A map of records: `name`, `points` (n, 2 or 3) float32, and its quality.

    `trustworthiness` and `continuity` are from 0 to 1, computed on `evaluated` of the records. They
    are None where there are too few.
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
        components: (n, k) principal components. The first are the map `pca`.
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
    """Map (n, k) to (n, size) float32 by t-SNE, always the same (van der Maaten and Hinton 2008).

    It starts from the first components (Kobak and Berens 2019).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    model = TSNE(size, perplexity=perplexity, init="pca", random_state=_SEED)
    # Threads add numbers up in another order each time, which gives another map.
    with threadpool_limits(1):
        points: Matrix = model.fit_transform(components).astype(np.float32)
    return points


def run_umap(components: Matrix, size: int) -> Matrix:
    """Map (n, k) to (n, size) float32 by UMAP, always the same (McInnes, Healy, Melville 2018)."""
    with warnings.catch_warnings(), _without_tensorflow():
        # It warns about the next version of a library.
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbors = min(NEIGHBORS, len(components) - 1)
        # More than one thread would give another map each time.
        model = UMAP(neighbors, size, min_dist=MINIMAL_DISTANCE, random_state=_SEED, n_jobs=1)
        points: Matrix = model.fit_transform(components).astype(np.float32)
    return points


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Hide TensorFlow from umap-learn, which would import it for a UMAP that is not used."""
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

    Trustworthiness is low where neighbors on the map are not neighbors in truth, continuity where
    neighbors are torn apart (Venna and Kaski 2001). 1 is best, about 0.5 a random map. Both use L2,
    the 15 nearest, and a random sample of at most EVALUATED records.

    Args:
        name: of the map.
        features: (n, D).
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
