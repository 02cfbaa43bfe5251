"""Any normal number is computed by itself, and together they are normal and independent."""

import numpy as np
import pytest
from scipy import stats

from pretrain.model import normals
from pretrain.model.normals import NormalStream

N = 1 << 20


def numbers(seed: int = 7, name: str = "a", first: int = 0, count: int = N, std: float = 1.0) -> np.ndarray:
    out = np.empty(count, np.float32)
    NormalStream(seed, name).fill(out, first, std)
    return out


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    return numbers()


@pytest.mark.parametrize("first", [0, 1, 2, 7, 8, 9, 123_457, N - 40_000])
@pytest.mark.parametrize("count", [0, 1, 2, 9, 40_000])
def test_any_range_is_computed_by_itself(stream: np.ndarray, first: int, count: int) -> None:
    assert np.array_equal(numbers(first=first, count=count), stream[first : first + count])


def test_one_stream_may_be_read_in_any_order(stream: np.ndarray) -> None:
    reader, out = NormalStream(7, "a"), np.empty(1000, np.float32)
    for first in (5000, 5000, 3, 900_001, 0):
        reader.fill(out, first)
        assert np.array_equal(out, stream[first : first + 1000])


@pytest.mark.parametrize(("rows", "columns", "stride"), [(700, 3, 41), (5, 9000, 9001), (3, 40_000, 50_001), (1, 5, 0)])
def test_rows_are_pieces_of_the_stream(stream: np.ndarray, rows: int, columns: int, stride: int) -> None:
    out = np.empty((rows, columns), np.float32)
    NormalStream(7, "a").fill_rows(out, 11, stride)
    for i in range(rows):
        assert np.array_equal(out[i], stream[11 + i * stride :][:columns])


def test_indices_beyond_32_bits_do_not_repeat() -> None:
    far = [numbers(first=first, count=1000) for first in (0, 1 << 32, 1 << 36, 1 << 45)]
    assert len({part.tobytes() for part in far}) == 4


def test_values_are_these_on_every_machine() -> None:
    """Recorded once: these bits must never change, or a run would no longer be that of its seed."""
    assert numbers(1234, "decoder.final", first=10**10 + 1, count=4, std=0.02).tobytes().hex() == RECORDED


RECORDED = "0e61813c0dbcefba29c5113ddd86a03c"


def test_numbers_are_standard_normal(stream: np.ndarray) -> None:
    exact = stream.astype(np.float64)
    # Standard errors of mean, deviation, skewness and excess kurtosis of N normal numbers.
    assert abs(exact.mean()) < 4 / N**0.5
    assert abs(exact.std() - 1) < 4 / (2 * N) ** 0.5
    assert abs(stats.skew(exact)) < 4 * (6 / N) ** 0.5
    assert abs(stats.kurtosis(exact)) < 4 * (24 / N) ** 0.5
    assert stats.kstest(exact, "norm").pvalue > 1e-4


@pytest.mark.parametrize("limit", [3, 4, 4.5])
def test_tails_hold_their_share(stream: np.ndarray, limit: float) -> None:
    for tail in (stream > limit, stream < -limit):
        expected = N * stats.norm.sf(limit)
        assert abs(tail.sum() - expected) < 4 * expected**0.5 + 1


def test_the_two_numbers_of_a_word_are_independent(stream: np.ndarray) -> None:
    first, second = stream[0::2].astype(np.float64), stream[1::2].astype(np.float64)
    for power in (1, 2):
        assert abs(np.corrcoef(first**power, second**power)[0, 1]) < 4 / (N / 2) ** 0.5
    edges = [-9, -0.5, 0.5, 9]
    shares = np.diff(stats.norm.cdf(edges))
    found, *_ = np.histogram2d(first, second, bins=[edges, edges])
    assert stats.chisquare(found.ravel(), np.outer(shares, shares).ravel() * N / 2).pvalue > 1e-4


@pytest.mark.parametrize(("seed", "name"), [(8, "a"), (7, "b"), (-7, "a"), (7, "a.a")])
def test_streams_of_seeds_and_names_are_independent(stream: np.ndarray, seed: int, name: str) -> None:
    other = numbers(seed, name)
    for lag in (0, 1, 8):
        assert abs(np.corrcoef(stream[lag:], other[: N - lag])[0, 1]) < 4 / N**0.5


@pytest.mark.parametrize("lag", [1, 2, 4, 8, 4096])
def test_neighbours_are_independent(stream: np.ndarray, lag: int) -> None:
    assert abs(np.corrcoef(stream[lag:], stream[:-lag])[0, 1]) < 4 / N**0.5


@pytest.mark.parametrize("half", [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
def test_extreme_bits_give_the_numbers_of_the_formula(half: int) -> None:
    others = np.array([0, 1, 2, 3, 2**30, 2**31 - 1, 2**31, 2**32 - 1], np.uint64)
    words = np.uint64(half) + (others << np.uint64(32))
    found = normals._Workspace().normals(words, 1.0).reshape(-1, 2).astype(np.float64)
    radius = np.sqrt(-2 * np.log((half + 0.5) / 2**32))
    assert np.isfinite(found).all()
    assert np.hypot(*found.T) == pytest.approx(radius, rel=2e-6, abs=4e-4)


def test_errors_of_the_arithmetic_are_those_of_fp32() -> None:
    words = np.random.Philox(key=3).random_raw(normals.BATCH)
    found = normals._Workspace().normals(words, 1.0).reshape(-1, 2).astype(np.float64)
    bits, angle = (words & np.uint64(2**32 - 1)).astype(np.float64), (words >> np.uint64(32)).astype(np.int64)
    radius = np.sqrt(-2 * np.log((bits + 0.5) / 2**32))
    eighth = np.where(angle < 2**31, angle, angle - 2**32) * (np.pi / 4 / 2**31) + np.pi / 4
    signs = 1 - 2 * np.stack([angle & 1, angle >> 1 & 1], 1)
    expected = radius[:, None] * np.stack([np.cos(eighth), np.sin(eighth)], 1) * signs
    seen = radius > 0.05  # below, the rounding of u to fp32 shows
    assert np.abs(found - expected)[seen].max() < 3e-6
