"""Clusters: against the package, against planted truth, and frozen."""

import warnings

import numpy as np
import pytest
from vector_factory import STRANGER, grouped, names, unit

from mm_assets.clustering import NOISE, ClusterModel, fit_clusters
from mm_assets.errors import ConfigError
from mm_assets.vectors import Floats


def labels_of(model: ClusterModel) -> np.ndarray:
    """Return the labels in the order of ``names``."""
    by_id = dict(zip(model.item_ids, model.labels, strict=True))
    return np.array([by_id[name] for name in names(len(by_id))])


def agreement(left: np.ndarray, right: np.ndarray) -> float:
    """Return the adjusted Rand index: 1 for the same partition, 0 for chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(left, right))


@pytest.fixture(scope="module")
def fitted() -> tuple[ClusterModel, Floats, np.ndarray]:
    """Fit a model of 1,500 vectors in 12 groups."""
    matrix, groups = grouped(1_500, 24, 12, spread=0.4, has_strangers=True)
    return fit_clusters(names(1_500), matrix, min_cluster_size=15), matrix, groups


@pytest.mark.parametrize("n", [80, 250, 3_000])
@pytest.mark.parametrize("min_samples", [None, 4])
def test_fit_clusters_agrees_with_the_package(n: int, min_samples: int | None) -> None:
    """Labels, noise and strengths are those of hdbscan.HDBSCAN: exactly on complete graphs, nearly on larger ones."""
    import hdbscan

    matrix, _ = grouped(n, 16, 6, spread=0.4, has_strangers=True)
    model = fit_clusters(names(n), matrix, min_cluster_size=8, min_samples=min_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package's own calls of scikit-learn, not ours
        peer = hdbscan.HDBSCAN(min_cluster_size=8, min_samples=min_samples, core_dist_n_jobs=1).fit(
            matrix.astype(np.float64)
        )
    assert peer.labels_.max() >= 1
    assert labels_of(model).max() == peer.labels_.max()
    assert agreement(labels_of(model), peer.labels_) >= (1.0 if n <= 100 else 0.98)
    assert ((labels_of(model) == NOISE) == (peer.labels_ == NOISE)).mean() >= (1.0 if n <= 100 else 0.98)
    if n <= 100:
        strengths = dict(zip(model.item_ids, model.strengths, strict=True))
        np.testing.assert_allclose([strengths[name] for name in names(n)], peer.probabilities_, atol=1e-3)


def test_fit_clusters_finds_the_planted_groups(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """Every group is one cluster, strangers are noise."""
    model, _, groups = fitted
    assert len(model.cluster_names()) == 12
    assert agreement(labels_of(model), groups) > 0.98
    assert (labels_of(model)[groups == STRANGER] == NOISE).mean() > 0.9


def test_fit_clusters_joins_a_graph_that_falls_apart() -> None:
    """Groups without a stranger between them, larger than the number of neighbours: each is found all the same."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 150)
    matrix = unit(unit(random.normal(size=(40, 32)))[groups] + 0.02 * random.normal(size=(6_000, 32)))
    model = fit_clusters(names(6_000), matrix, min_cluster_size=20)
    is_member = labels_of(model) != NOISE
    assert len(model.cluster_names()) == 40
    assert is_member.mean() > 0.9
    assert agreement(labels_of(model)[is_member], groups[is_member]) == 1.0


def test_strengths_lie_between_0_and_1_and_are_0_for_noise(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """Noise has no strength, members have some, and each cluster has a core of strength 1."""
    model, _, _ = fitted
    assert (model.strengths[model.labels == NOISE] == 0).all()
    assert (model.strengths[model.labels != NOISE] > 0).all()
    assert model.strengths.max() <= 1
    assert all(model.strengths[model.labels == label].max() == 1 for label in range(12))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_fit_clusters_calls_few_rows_noise(n: int) -> None:
    """Fewer rows than the smallest cluster are noise, and so is whatever is asked of them later."""
    matrix, _ = grouped(10, 8, 2, spread=0.1, has_strangers=True)
    model = fit_clusters(names(n), matrix[:n], min_cluster_size=5)
    assert model.cluster_names() == []
    assert (model.assign(names(10), matrix)[0] == NOISE).all()


def test_assign_keeps_what_members_have(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """Judging the collection again gives each row of the fit its own label and strength."""
    model, matrix, _ = fitted
    labels, strengths = model.assign(names(1_500), matrix)
    np.testing.assert_array_equal(labels, labels_of(model))
    by_id = dict(zip(model.item_ids, model.strengths, strict=True))
    np.testing.assert_array_equal(strengths, [by_id[name] for name in names(1_500)])


def test_assign_gives_new_rows_the_cluster_they_lie_in(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """Further rows of the planted groups get their group's cluster or, at its edge, noise; hardly ever another's."""
    model, _, groups = fitted
    matrix, new_groups = grouped(600, 24, 12, spread=0.4, seed=1, has_strangers=True)
    labels, strengths = model.assign([f"new-{i}" for i in range(600)], matrix)
    of_group = {group: np.bincount(labels_of(model)[groups == group] + 1).argmax() - 1 for group in range(12)}
    is_member = new_groups != STRANGER
    expected = np.array([of_group[group] for group in new_groups[is_member]])
    assert (labels[is_member] == expected).mean() > 0.9
    assert ((labels[is_member] == expected) | (labels[is_member] == NOISE)).all()
    assert ((strengths > 0) == (labels != NOISE)).all()
    assert strengths.max() <= 1


def test_assign_calls_far_rows_noise(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """Rows unlike any cluster are noise, though each has a nearest neighbour in one."""
    model, _, _ = fitted
    far = unit(np.random.default_rng(9).normal(size=(300, 24)))
    labels, strengths = model.assign([f"far-{i}" for i in range(300)], far)
    assert (labels == NOISE).mean() > 0.9
    assert (strengths[labels == NOISE] == 0).all()


def test_assign_does_not_depend_on_the_batch(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """One by one gives what all together give."""
    model, _, _ = fitted
    matrix, _ = grouped(30, 24, 12, spread=0.4, seed=2, has_strangers=True)
    ids = [f"new-{i}" for i in range(30)]
    together = model.assign(ids, matrix)[0]
    single = [model.assign([ids[i]], matrix[i : i + 1])[0].item() for i in range(30)]
    np.testing.assert_array_equal(together, single)


def test_cluster_of_copies_is_found_and_takes_another_copy() -> None:
    """A still picture repeated has density without end: it is a cluster, and its next copy belongs to it."""
    matrix, _ = grouped(300, 16, 3, spread=0.4, has_strangers=True)
    still = unit(np.random.default_rng(4).normal(size=(1, 16)))
    model = fit_clusters(names(330), np.concatenate([matrix, np.repeat(still, 30, axis=0)]), min_cluster_size=10)
    of_still = set(labels_of(model)[300:])
    assert len(of_still) == 1
    assert of_still != {NOISE}
    labels, strengths = model.assign(["another copy"], still)
    assert {labels.item()} == of_still
    assert strengths.item() == 1


def test_cluster_names_come_from_content() -> None:
    """A cluster keeps its name when others join the collection, and no two have the same."""
    matrix, groups = grouped(900, 16, 6, spread=0.3, has_strangers=True)
    order = np.argsort(groups == 5, kind="stable")  # the sixth group last
    matrix, groups = matrix[order], groups[order]
    n_before = int((groups != 5).sum())
    before = fit_clusters(names(n_before), matrix[:n_before], min_cluster_size=15).cluster_names()
    after = fit_clusters(names(900), matrix, min_cluster_size=15).cluster_names()
    assert (len(before), len(after)) == (5, 6)
    assert len(set(before) & set(after)) >= 4
    assert len(set(after)) == 6


def test_to_table_names_the_cluster_of_each_row(fitted: tuple[ClusterModel, Floats, np.ndarray]) -> None:
    """An analyst reads the cluster without knowing labels: null for noise, else the name."""
    model, _, _ = fitted
    rows = model.to_table().select(["label", "cluster_id", "confidence"]).to_pylist()
    assert all((row["cluster_id"] is None) == (row["label"] == NOISE) for row in rows)
    assert {row["cluster_id"] for row in rows} - {None} == set(model.cluster_names())


@pytest.mark.parametrize("parameters", [{"min_cluster_size": 1}, {"min_cluster_size": 5, "min_samples": 0}])
def test_fit_clusters_refuses_parameters_out_of_range(parameters: dict[str, int]) -> None:
    """Clusters of one, or density of no neighbours, mean nothing."""
    with pytest.raises(ConfigError, match="at least"):
        fit_clusters(names(10), grouped(10, 8, 2, spread=0.1, has_strangers=True)[0], **parameters)
