# SPDX-License-Identifier: Apache-2.0
"""Maps of features in two or three dimensions, and how far each is to be trusted."""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array, Matrix

# What t-SNE and UMAP start from.
DIMENSIONS = 50
PERPLEXITY, NEIGHBOURS, MINIMAL_DISTANCE = 30, 15, 0.1
# With fewer points neither says anything.
FEWEST = 10
# Both measures need all distances between the records that they are computed on.
JUDGED = 2_000
_JUDGED_BY = 15
_SEED = 0


@dataclass(frozen=True)
class Map:
    """A map of records: `name`, `points` (n, 2 or 3) float32, and what is lost in it.

    `trustworthiness` and `continuity` are from 0 to 1, computed on `judged` of the records; None
    where there are too few.
    """

    name: str
    points: Matrix
    trustworthiness: float | None
    continuity: float | None
    judged: int


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def projections(components: Matrix, size: int) -> dict[str, Matrix]:
    """Give maps by name: `pca`, and where there are points enough `tsne` and `umap`.

    Args:
        components: (n, k) principal components, the first of which are the map `pca`.
        size: the dimensions of the maps, 2 or 3.

    Returns:
        (n, size) float32 each. `umap` is left out where umap-learn is not installed.
    """
    components = components[:, :DIMENSIONS]
    missing = max(0, size - components.shape[1])
    components = np.pad(components, ((0, 0), (0, missing)))
    found = {"pca": components[:, :size]}
    if len(components) >= FEWEST and np.ptp(components[:, 0]) > 0:
        found["tsne"] = tsne(components, size)
        if has_umap():
            found["umap"] = umap(components, size)
    return found


def tsne(components: Matrix, size: int) -> Matrix:
    """Map (n, k) to (n, size) float32 by t-SNE, always the same (van der Maaten and Hinton 2008).

    It starts from the first components (Kobak and Berens 2019).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    model = TSNE(size, perplexity=perplexity, init="pca", random_state=_SEED)
    # Threads add numbers up in another order each time, which becomes another map.
    with threadpool_limits(1):
        points: Matrix = model.fit_transform(components).astype(np.float32)
    return points


def umap(components: Matrix, size: int) -> Matrix:
    """Map (n, k) to (n, size) float32 by UMAP, always the same (McInnes, Healy, Melville 2018)."""
    with warnings.catch_warnings(), _without_tensorflow():
        # Of what the next version of a library it uses will do.
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbours = min(NEIGHBOURS, len(components) - 1)
        # More than one thread would give another map each time.
        model = UMAP(neighbours, size, min_dist=MINIMAL_DISTANCE, random_state=_SEED, n_jobs=1)
        points: Matrix = model.fit_transform(components).astype(np.float32)
    return points


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Let umap-learn not find TensorFlow, which it would import for a UMAP that is not used."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


def judged(name: str, features: Array, points: Matrix) -> Map:
    """Say of a map what is lost in it.

    Trustworthiness is low where neighbours on the map are none in truth, continuity where
    neighbours are torn apart (Venna and Kaski 2001); 1 is best, about 0.5 a random map. Both by
    L2, the 15 nearest, and on a random sample of at most JUDGED of the records.

    Args:
        name: of the map.
        features: (n, D).
        points: (n, 2 or 3).
    """
    from sklearn.manifold import trustworthiness

    chosen = np.arange(len(features))
    if len(features) > JUDGED:
        chosen = np.random.default_rng(_SEED).permutation(len(features))[:JUDGED]
    k = min(_JUDGED_BY, (len(chosen) - 1) // 2)
    if k < 1:
        return Map(name, points, None, None, len(chosen))
    high, low = features[chosen].astype(np.float64), points[chosen].astype(np.float64)
    return Map(
        name,
        points,
        float(trustworthiness(high, low, n_neighbors=k)),
        float(trustworthiness(low, high, n_neighbors=k)),
        len(chosen),
    )
