"""Anomaly scores: planted strangers, members, copies, samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_factory import names, unit

from mm_assets.anomalies import fit_baseline
from mm_assets.errors import ConfigError
from mm_assets.identity import vector_id
from mm_assets.vectors import Floats


def ordinary(n: int, dim: int = 16, seed: int = 0) -> Floats:
    """Draw vectors of four groups."""
    random = np.random.default_rng(seed)
    return unit(np.eye(dim)[random.integers(0, 4, n)] + 0.1 * random.normal(size=(n, dim)))


def test_planted_strangers_rank_highest() -> None:
    """Vectors that point where no group does are stranger than all others, in the baseline and on arrival."""
    strangers = np.eye(16, dtype=np.float32)[8:14]
    matrix = np.concatenate([ordinary(500), strangers])
    baseline = fit_baseline(names(506), matrix, n_neighbours=5)
    assert set(np.argsort(baseline.score(names(506), matrix)[1])[-6:]) == set(range(500, 506))
    arriving = np.concatenate([ordinary(50, seed=1), np.eye(16, dtype=np.float32)[14:]])
    distance, score = baseline.score(names(52, "new"), arriving)
    assert distance[50:].min() > 0.5 > distance[:50].max()
    assert score[50:].min() > 0.98


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 50), k=st.integers(1, 60), seed=st.integers(0, 999))
def test_distance_is_that_to_the_kth_neighbour(n: int, k: int, seed: int) -> None:
    """Members count all others, strangers count all; with too few rows the farthest counts."""
    matrix, new = ordinary(n, seed=seed), ordinary(6, seed=seed + 1)
    baseline = fit_baseline(names(n), matrix, n_neighbours=k)
    place = min(k, n - 1) - 1
    everything = 1 - matrix.astype(np.float64) @ matrix.T
    np.fill_diagonal(everything, np.inf)
    distance, score = baseline.score(names(n), matrix)
    np.testing.assert_allclose(distance, np.sort(everything, axis=1)[:, place], atol=1e-5)
    np.testing.assert_allclose(score, [(distance < own).mean() for own in distance], atol=1e-6)
    expected = np.sort(1 - new.astype(np.float64) @ matrix.T, axis=1)[:, place]
    np.testing.assert_allclose(baseline.score(names(6, "new"), new)[0], expected, atol=1e-5)


def test_score_rises_with_distance_within_0_and_1() -> None:
    """Nothing in the baseline is below its nearest row; all of it is below a row opposite to everything."""
    matrix = ordinary(300)
    baseline = fit_baseline(names(300), matrix, n_neighbours=3)
    distance, score = baseline.score(names(300), matrix)
    order = np.argsort(distance)
    assert (np.diff(score[order]) >= 0).all()
    assert (score[order[0]], score[order[-1]]) == (0.0, pytest.approx(299 / 300))
    distance, score = baseline.score(["opposite"], unit(-matrix.mean(axis=0, keepdims=True)))
    assert score.item() == 1
    assert 1 < distance.item() <= 2


def test_a_member_is_not_its_own_neighbour_and_its_copies_are() -> None:
    """A lone stranger stays strange to itself; under another id it has itself as neighbour; four copies are no strangers."""
    stranger = np.eye(16, dtype=np.float32)[9:10]
    matrix = np.concatenate([ordinary(200), stranger])
    alone = fit_baseline(names(201), matrix, n_neighbours=1)
    assert alone.score(["item-200"], stranger)[0].item() > 0.5
    assert alone.score(["copy"], stranger)[0].item() == 0
    matrix = np.concatenate([ordinary(200), np.repeat(stranger, 4, axis=0)])
    distance, score = fit_baseline(names(204), matrix, n_neighbours=3).score(names(204), matrix)
    assert (distance[200:] == 0).all()
    assert (score[200:] == 0).all()


def test_collection_of_copies_has_no_strangers() -> None:
    """One picture many times: all at distance 0 and score 0, and anything else at score 1."""
    matrix = np.repeat(ordinary(1), 50, axis=0)
    baseline = fit_baseline(names(50), matrix, n_neighbours=5)
    distance, score = baseline.score([*names(50), "copy", "other"], np.concatenate([matrix, matrix[:1], -matrix[:1]]))
    assert (distance[:51] == 0).all()
    assert (score[:51] == 0).all()
    assert (distance[51], score[51]) == (pytest.approx(2), 1)


@pytest.mark.parametrize("n", [0, 1])
def test_without_another_row_nothing_is_strange(n: int) -> None:
    """A baseline of nothing, or of the row itself, gives 0 and not a division by zero."""
    baseline = fit_baseline(names(n), ordinary(n), n_neighbours=5)
    distance, score = baseline.score(names(1), ordinary(1))
    assert (distance.item(), score.item()) == (0, 0)


def test_sample_depends_on_the_ids_alone() -> None:
    """Of more rows than allowed the lowest hashes are kept, in whatever order they come; the rest are scored as new."""
    matrix = ordinary(400)
    baseline = fit_baseline(names(400), matrix, n_neighbours=5, max_rows=100)
    reverse = fit_baseline(names(400)[::-1], matrix[::-1], n_neighbours=5, max_rows=100)
    assert set(baseline.vector_ids) == set(sorted(map(vector_id, names(400)))[:100])
    np.testing.assert_array_equal(baseline.vectors, reverse.vectors)
    np.testing.assert_array_equal(baseline.distances, reverse.distances)
    score = baseline.score(names(400), matrix)[1]
    is_kept = np.isin([vector_id(name) for name in names(400)], baseline.vector_ids)
    assert abs(score[is_kept].mean() - score[~is_kept].mean()) < 0.1


def test_score_does_not_depend_on_the_batch() -> None:
    """One by one gives what all together give."""
    baseline = fit_baseline(names(300), ordinary(300), n_neighbours=5)
    new = ordinary(40, seed=3)
    together = baseline.score(names(40, "new"), new)
    single = [baseline.score([f"new-{i}"], new[i : i + 1]) for i in range(40)]
    np.testing.assert_allclose(together[0], [distance.item() for distance, _ in single], atol=1e-6)
    np.testing.assert_allclose(together[1], [score.item() for _, score in single], atol=1 / 300)


@pytest.mark.parametrize("parameters", [{"n_neighbours": 0}, {"n_neighbours": 5, "max_rows": 1}])
def test_fit_baseline_refuses_parameters_out_of_range(parameters: dict[str, int]) -> None:
    """No neighbours, or a sample without a pair, measure nothing."""
    with pytest.raises(ConfigError, match="at least"):
        fit_baseline(names(10), ordinary(10), **parameters)
