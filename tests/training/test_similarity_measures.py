import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.similarity import measures
from training.similarity.measures import compare

numbers = st.floats(-1e3, 1e3, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
vectors = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2))
factors = st.floats(1e-3, 1e3)


def similarity(a: list[float] | Tensor, b: list[float] | Tensor, measure: str = "weighted") -> float:
    """Of two vectors, as the only parameter of the only stage."""
    pair = (torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64))
    found = compare([[pair]]).similarity[measure]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9, equal_nan=True)
    return float(found[0, 0, 1])


def oracle(a: np.ndarray, b: np.ndarray, measure: str) -> float:
    """The formulas of the module's docstring, written down once more."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if measure == "unit":
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    if measure != "plain_cosine":
        m = np.abs(a) + np.abs(b)
        a, b = a[m > 0] / m[m > 0], b[m > 0] / m[m > 0]
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_regression_values() -> None:
    assert similarity([1, 0.01], [1, -0.01], "plain_cosine") == pytest.approx(0.9998, abs=1e-6)
    assert similarity([1, 0.01], [1, -0.01]) == pytest.approx(0, abs=1e-12)
    assert similarity([3, 1, -2], [1, 2, 1], "plain_cosine") == pytest.approx(0.32733, abs=5e-6)
    assert similarity([3, 1, -2], [1, 2, 1]) == pytest.approx(0.22556, abs=5e-6)
    assert similarity([6, 2, -4], [1, 2, 1]) == pytest.approx(0.29916, abs=5e-6)


@given(vectors, st.sampled_from(measures.MEASURES))
def test_between_minus_one_and_one_symmetric_and_undefined_only_for_zero(pair, measure: str) -> None:
    a, b = pair
    found = similarity(a, b, measure)
    if not any(a) or not any(b):
        assert np.isnan(found)
    else:
        assert -1 <= found <= 1
        assert similarity(b, a, measure) == pytest.approx(found, abs=1e-12)
        assert found == pytest.approx(oracle(np.array(a), np.array(b), measure), abs=1e-9)


@given(st.lists(numbers, min_size=1, max_size=12).filter(any), factors, st.sampled_from(measures.MEASURES))
def test_a_multiple_is_the_same_and_a_negative_multiple_the_opposite(a, factor: float, measure: str) -> None:
    assert similarity(a, [factor * x for x in a], measure) == pytest.approx(1, abs=1e-9)
    assert similarity(a, [-factor * x for x in a], measure) == pytest.approx(-1, abs=1e-9)


@given(vectors.filter(lambda pair: any(pair[0]) and any(pair[1])), factors, st.randoms(), st.integers(0, 3))
def test_one_factor_for_both_an_order_and_common_zeros_change_nothing(pair, factor: float, random, zeros: int) -> None:
    columns = [*zip(*pair, strict=True), *[(0.0, 0.0)] * zeros]
    random.shuffle(columns)
    a, b = ([factor * x for x in side] for side in zip(*columns, strict=True))
    for measure in measures.MEASURES:
        assert similarity(a, b, measure) == pytest.approx(similarity(*pair, measure), abs=1e-9)


@given(vectors.filter(lambda pair: any(pair[0]) and any(pair[1])), factors)
def test_a_factor_for_one_changes_neither_unit_nor_cosine(pair, factor: float) -> None:
    a, b = pair
    for measure in ("unit", "plain_cosine"):
        assert similarity([factor * x for x in a], b, measure) == pytest.approx(similarity(a, b, measure), abs=1e-9)


def test_a_tiny_coordinate_counts_as_much_as_a_large_one() -> None:
    assert similarity([1, 1e-12], [1, -1e-12]) == pytest.approx(0, abs=1e-12)


def test_stages_are_apart_and_the_last_matrix_is_of_all_in_one() -> None:
    random = torch.Generator().manual_seed(0)
    # Stages of other scales for each task: the unit of all stages is not that of one.
    stages = [[torch.randn(3, 40, generator=random) * scale for scale in row] for row in ((1, 9), (0.1, 1))]
    joint = torch.cat([torch.cat([s.unsqueeze(1) for s in stage], 1) for stage in stages], 1)
    gradients = [[tuple(part) for part in stage] for stage in stages]
    found = compare(gradients)
    for measure in measures.MEASURES:
        for i, j in ((0, 1), (0, 2), (1, 2)):
            for stage, parts in enumerate([*[torch.cat([*s], 1) for s in stages], joint.flatten(1)]):
                expected = oracle(parts[i].numpy(), parts[j].numpy(), measure)
                assert found.similarity[measure][stage, i, j] == pytest.approx(expected, abs=1e-6)
    norms = torch.stack([torch.cat([*s], 1).double().square().sum(1) for s in stages])
    torch.testing.assert_close(found.squared_norms, norms)


def test_a_million_float32_coordinates_are_exact_to_a_millionth() -> None:
    random = np.random.default_rng(0)
    a = (random.standard_normal(1_000_003) * 10.0 ** random.uniform(-9, 3, 1_000_003)).astype(np.float32)
    b = (0.3 * a + random.standard_normal(len(a)) * np.abs(a)).astype(np.float32)
    parts = [(torch.from_numpy(a[:7]), torch.from_numpy(b[:7])), (torch.from_numpy(a[7:]), torch.from_numpy(b[7:]))]
    found = compare([parts]).similarity
    for measure in measures.MEASURES:
        assert found[measure][0, 0, 1] == pytest.approx(oracle(a, b, measure), abs=1e-6)


@settings(max_examples=20)
@given(vectors.filter(lambda pair: any(pair[0]) and any(pair[1])), st.sampled_from([torch.nan, torch.inf]))
def test_infinity_and_nan_stay_with_their_own_task(pair, bad: float) -> None:
    a, b = (torch.tensor(side, dtype=torch.float64) for side in pair)
    odd = torch.full_like(a, bad)
    for measure, found in compare([[(a, odd, b)]]).similarity.items():
        assert found[0].isnan().tolist() == [[False, True, False], [True, True, True], [False, True, False]]
        assert found[0, 0, 2] == pytest.approx(similarity(*pair, measure), abs=1e-9)


def test_a_parameter_that_a_loss_does_not_reach_has_a_gradient_of_zeros() -> None:
    a, b, c = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([2.0])
    with_none = compare([[(a, b), (c, None), (None, None)]]).similarity
    with_zeros = compare([[(a, b), (c, torch.zeros(1)), (torch.zeros(1), torch.zeros(1))]]).similarity
    for measure in measures.MEASURES:
        assert torch.equal(with_none[measure], with_zeros[measure])


def test_the_diagonal_is_exactly_one() -> None:
    a = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    for found in compare([[tuple(a)]]).similarity.values():
        assert found.diagonal(dim1=1, dim2=2).tolist() == [[1, 1], [1, 1]]


def test_the_element_wise_measure_falls_as_norms_drift_apart_and_unit_does_not() -> None:
    # Two gradients with a cosine of about 0.5; the values of the notes: 0.234, 0.159, 0.063, 0.009.
    random = torch.Generator().manual_seed(0)
    shared, own, other = torch.randn(3, 200_000, generator=random, dtype=torch.float64)
    a, b = shared + own, shared + other
    found = [similarity(a, b * ratio) for ratio in (1, 10, 100, 1e4)]
    assert found == pytest.approx([0.234, 0.159, 0.063, 0.009], abs=0.03)
    assert similarity(a, b * 1e4, "unit") == pytest.approx(found[0], abs=1e-3)
