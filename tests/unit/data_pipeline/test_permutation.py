import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.permutation import shuffled_indices


@settings(max_examples=80, deadline=None)
@given(num_samples=st.integers(1, 3000), seed=st.integers(-(2**63), 2**64), epoch=st.integers(0, 2**40))
def test_each_epoch_is_a_permutation(num_samples, seed, epoch):
    order = shuffled_indices(np.arange(num_samples) + epoch * num_samples, num_samples, seed)
    assert np.array_equal(np.sort(order), np.arange(num_samples))


@given(
    num_samples=st.integers(1, 500),
    positions=st.lists(st.integers(0, 5000), max_size=50),
)
def test_a_single_position_equals_any_window(num_samples, positions):
    whole = shuffled_indices(np.arange(5001), num_samples, seed=7)
    assert shuffled_indices(positions, num_samples, seed=7).tolist() == whole[positions].tolist()


@pytest.mark.parametrize("num_samples", [50, 64, 65, 1000, 4097])
def test_epochs_and_seeds_differ_and_look_shuffled(num_samples):
    epochs = [
        shuffled_indices(np.arange(num_samples) + e * num_samples, num_samples, seed) for e in (0, 1) for seed in (0, 1)
    ]
    epochs.append(np.arange(num_samples))
    for number, first in enumerate(epochs):
        for second in epochs[:number]:
            assert np.mean(first == second) < 0.1
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(num_samples)


def test_every_position_is_equally_likely():
    counts = np.zeros((100, 100))
    for seed in range(1000):
        counts[np.arange(100), shuffled_indices(range(100), 100, seed)] += 1
    chi_squared = ((counts - 10) ** 2 / 10).sum()
    assert abs(chi_squared - 99 * 99) < 6 * np.sqrt(2 * 99 * 99)


@pytest.mark.parametrize(
    ("num_samples", "seed", "start", "expected"),
    [
        (10, 1234, 0, [7, 6, 0, 3, 5, 4, 9, 1]),
        (1000, 1234, 0, [686, 593, 30, 386, 547, 543, 349, 929]),
        (1000, 1234, 996, [876, 975, 752, 987, 570, 288, 917, 301]),
        (
            10**12,
            5,
            3 * 10**12,
            [
                950043376727,
                977700890564,
                296387713002,
                98498396435,
                706360615511,
                146594617301,
                215454017960,
                195399025578,
            ],
        ),
    ],
)
def test_the_order_never_changes(num_samples, seed, start, expected):
    """A checkpoint holds only a position, so another order would silently train on other text."""
    assert shuffled_indices(range(start, start + 8), num_samples, seed).tolist() == expected
