# SPDX-License-Identifier: Apache-2.0
"""The PCA of features that are too wide for D x D products, against NumPy's exact SVD."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.synthetic_runs import FINGERPRINT, make_run

from ray_embed import load
from ray_embed.analysis.evaluation.evaluate import _replace_spectrum
from ray_embed.analysis.evaluation.measures import FeatureEvaluation
from ray_embed.core.threads import open_ordered_map
from ray_embed.errors import DamagedError, InputError
from ray_embed.projector import covariance, pca, wide_pca
from ray_embed.projector.merge_task import PartGroup
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

COUNT, SIZE, SHARD = 700, 500, 64


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Let few dimensions be many, and everything be read in several chunks, strips and blocks."""
    monkeypatch.setattr(pca, "MAX_EXACT_DIMENSIONS", 100)
    monkeypatch.setattr(wide_pca, "_CHUNK_BYTES", 4 * SIZE * 50)
    monkeypatch.setattr(wide_pca, "_STRIP_BYTES", 4 * SIZE * 90)
    monkeypatch.setattr(wide_pca, "_FEATURE_BYTES_PER_RESULT_BYTE", 1)
    monkeypatch.setattr(part_files, "_BATCH_BYTES", 4 * SIZE * 7)


@pytest.fixture(params=[pca.GRAM, pca.KRYLOV])
def name(request, monkeypatch):
    """Take one of both ways, whatever the number of records."""
    monkeypatch.setattr(wide_pca, "MOST_RECORDS", 10**6 if request.param == pca.GRAM else 0)
    return request.param


def points(decay=0.7, count=COUNT, size=SIZE, offset=3.0):
    random = np.random.default_rng(0)
    turned = np.linalg.qr(random.normal(size=(size, size)))[0]
    spread = random.normal(size=(count, size)) * np.arange(1, size + 1) ** -decay
    return (spread @ turned + offset).astype(np.float32)


def reduce(path, values, *, mapped=None, threads=1, **options):
    """Write a run folder and compute its components, without the projector."""
    make_run(path, {"top": values}, shard=SHARD, **options)
    folder = Folder.open(str(path))
    groups, start = [], 0
    for number in part_files.list_part_numbers(folder):
        rows = part_files.read_footer(folder, number).rows
        groups.append(PartGroup(number, (number,), start, rows))
        start += rows
    size = values.shape[1]
    with open_ordered_map(threads, covariance.count_parallel_blocks([size])) as local_map:
        return covariance.compute_components(
            str(path), FINGERPRINT, tuple(groups), {"feature": size}, mapped or local_map
        )["feature"]


def exact(values):
    """Return mean, variances and components by NumPy's SVD in float64."""
    exactly = values.astype(np.float64)
    mean = exactly.mean(axis=0)
    _, singular, vectors = np.linalg.svd(exactly - mean, full_matrices=False)
    return mean, singular**2 / (len(values) - 1), vectors


def test_only_wide_features_limit_the_parallel_blocks(monkeypatch):
    monkeypatch.undo()
    count = covariance.count_parallel_blocks
    assert count([512]) == count([512, 64]) > 100
    assert count([512, 9000]) == count([9000]) == 2
    assert count([512, 230_400]) == 2
    assert count([1_000_000]) == 1


def test_few_records_give_exact_components(tmp_path, monkeypatch):
    monkeypatch.setattr(wide_pca, "MOST_RECORDS", COUNT)
    values = points()
    found = reduce(tmp_path, values)
    mean, variances, vectors = exact(values)
    assert (found.method.name, found.error, found.is_complete) == (pca.GRAM, 0, True)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.variances, variances, rtol=1e-9)
    cosines = np.abs((found.vectors * vectors[: pca.KEPT]).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, rtol=1e-9)
    assert found.ratios.sum() == pytest.approx(1)


@pytest.mark.parametrize(("decay", "most"), [(1.5, 1e-4), (0.7, 5e-3), (0.0, 0.25)])
def test_many_records_give_components_as_exact_as_they_say(tmp_path, monkeypatch, decay, most):
    monkeypatch.setattr(wide_pca, "MOST_RECORDS", COUNT - 1)
    values = points(decay)
    found = reduce(tmp_path, values)
    mean, variances, _ = exact(values)
    assert (found.method.name, found.method.passes) == (pca.KRYLOV, 4)
    assert found.variances.shape == (pca.KEPT,)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    # The residuals are what they are said to be, and bound the distance to a true variance.
    covariance = np.cov(values.astype(np.float64).T)
    residuals = np.linalg.norm(
        covariance @ found.vectors.T - found.vectors.T * found.variances, axis=0
    )
    np.testing.assert_allclose(found.method.residuals, residuals, rtol=1e-6, atol=1e-12)
    away = np.abs(found.variances[:, None] - variances).min(axis=1)
    assert (away <= residuals + 1e-12).all()
    assert found.error == pytest.approx((residuals / found.variances).max(), rel=1e-6)
    # Variances are never too large, and here they are close.
    assert (found.variances <= variances[: pca.KEPT] * (1 + 1e-12)).all()
    np.testing.assert_allclose(found.variances, variances[: pca.KEPT], rtol=most)
    # The whole variance is exact, and so the shares are right.
    assert found.method.total == pytest.approx(variances.sum(), rel=1e-12)
    np.testing.assert_allclose(found.ratios, found.variances / variances.sum(), rtol=1e-12)


def test_vectors_are_of_length_one_at_right_angles_and_signed(tmp_path, name):
    found = reduce(tmp_path, points())
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(pca.KEPT), atol=1e-9)
    largest = np.abs(found.vectors).argmax(axis=1)
    assert (found.vectors[np.arange(pca.KEPT), largest] > 0).all()


@pytest.mark.parametrize(
    ("kind", "rank"), [("equal", 0), ("two", 1), ("duplicates", 6), ("rank", 9), ("offset", 50)]
)
def test_odd_points(tmp_path, name, kind, rank):
    random = np.random.default_rng(0)
    some = random.normal(size=(7, 400)).astype(np.float32)
    values = {
        "equal": np.tile(some[0], (90, 1)),
        "two": some[:2],
        "duplicates": np.repeat(some, 20, axis=0),
        "rank": (random.normal(size=(200, 9)) @ random.normal(size=(9, 400))).astype(np.float32),
        "offset": points(1.0, 300, 400, 1e4),
    }[kind]
    found = reduce(tmp_path, values)
    kept = pca.count_kept(len(values), 400)
    assert found.vectors.shape == (kept, 400)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(kept), atol=1e-9)
    mean, variances, _ = exact(values)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-9)
    assert (found.variances[:kept] > 1e-9).sum() == rank
    if rank:
        first = slice(min(rank, 9))
        np.testing.assert_allclose(found.variances[first], variances[first], rtol=1e-3)
        assert found.ratios.sum() <= 1 + 1e-9
        spread = found.project(values).var(axis=0, ddof=1)
        np.testing.assert_allclose(spread, found.variances[:kept], rtol=1e-3, atol=1e-6)
    else:
        assert not found.ratios.any()
        assert not found.project(values).any()


def test_rejected_records_and_empty_parts_are_left_out(tmp_path, name):
    values = points()
    gone = [*range(64, 128), 200, 201]
    found = reduce(tmp_path, values, rejected=gone)
    mean, variances, _ = exact(np.delete(values, gone, axis=0))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.variances[:20], variances[:20], rtol=1e-4)


def test_threads_and_order_of_work_change_no_bit(tmp_path, name):
    seen = []

    def shuffled(function, items):
        items = list(items)
        order = np.random.default_rng(0).permutation(len(items))
        seen.append(order.tolist())
        made = {at: function(items[at]) for at in order}
        return (made[at] for at in range(len(items)))

    ways = [{"threads": 1}, {"threads": 3}, {"mapped": shuffled}]
    found = []
    for way in ways:
        folder = Folder.open(str(tmp_path))
        pca.save(folder, {"top": reduce(tmp_path, points(), **way)}, FINGERPRINT)
        found.append(folder.read(layout.COMPONENTS))
    assert found[0] == found[1] == found[2]
    assert any(order != sorted(order) for order in seen)


def test_numbers_that_are_not_finite_are_named(tmp_path, name):
    values = points()
    values[200, 3] = np.inf
    with pytest.raises(DamagedError, match=r"part-00000003\.parquet: it holds numbers that are"):
        reduce(tmp_path, values)


def test_the_file_has_the_same_columns_and_says_the_method(tmp_path, name):
    found = reduce(tmp_path, points())
    folder = Folder.open(str(tmp_path))
    pca.save(folder, {"top": found}, FINGERPRINT)
    table = pq.read_table(tmp_path / layout.COMPONENTS)
    assert table.schema.remove_metadata() == pca.SCHEMA
    known = len(found.variances)
    assert known == (pca.KEPT if name == pca.KRYLOV else SIZE)
    assert table["component"].to_pylist() == list(range(known + 1))
    again = pca.load(folder, "feature")
    assert again.method == found.method
    assert again.variances.tobytes() == found.variances.tobytes()
    assert again.vectors.tobytes() == found.vectors.tobytes()
    assert again.ratios.tolist() == table["ratio"].to_pylist()[1:]
    assert pca.load_method(folder, "feature") == (found.method, found.error)
    assert load(str(tmp_path)).explained_variance().shape == (known,)


def test_exact_components_of_narrow_features_say_no_method(tmp_path, monkeypatch):
    monkeypatch.setattr(pca, "MAX_EXACT_DIMENSIONS", SIZE)
    pca.save(Folder.open(str(tmp_path)), {"top": reduce(tmp_path, points())}, FINGERPRINT)
    assert pq.read_schema(tmp_path / layout.COMPONENTS).metadata == {
        b"ray_embed.fingerprint": FINGERPRINT.encode()
    }


def test_a_layer_without_components_is_to_be_reduced_again(tmp_path):
    # As versions that knew only exact components have left it.
    found = reduce(tmp_path, points())
    folder = Folder.open(str(tmp_path))
    pca.save(folder, {"another": found}, FINGERPRINT)
    with pytest.raises(InputError, match="no PCA of the layer top; `ray-embed reduce"):
        pca.load(folder, "feature")


def test_evaluation_takes_no_spectrum_from_the_first_components(tmp_path):
    found = reduce(tmp_path, points())
    folder = Folder.open(str(tmp_path))
    evaluated = FeatureEvaluation((), "there are no labels")
    for method, expected in (
        (found.method, ("alpha_req", "stable_rank", "participation_ratio")),
        (pca.Method(pca.KRYLOV, 4, 5.0, (0.1,)), ()),
    ):
        pca.save(folder, {"top": dataclasses.replace(found, method=method)}, FINGERPRINT)
        assert _replace_spectrum(evaluated, folder, "feature")[1] == expected


def test_large_parts_are_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    values = points()
    make_run(tmp_path, {"top": values}, shard=SHARD)
    folder = Folder.open(str(tmp_path))
    whole = part_files.read_part(folder, layout.FEATURES, 1)
    batches = list(part_files.read_feature_batches(folder, 1, "feature", FINGERPRINT))
    assert [len(rows) for rows in batches] == [7] * 9 + [1]
    assert np.array_equal(np.concatenate(batches), values[SHARD : 2 * SHARD])
    with pytest.raises(DamagedError, match="another run"):
        next(part_files.read_feature_batches(folder, 1, "feature", "0" * 64))
    monkeypatch.setattr(part_files, "_LARGE_COLUMN_BYTES", 1000)
    for columns in (None, ["feature", "index"], ["index"]):
        read = part_files.read_part(folder, layout.FEATURES, 1, columns)
        assert read.equals(whole if columns is None else whole.select(columns))
        assert read.schema.metadata == whole.schema.metadata
