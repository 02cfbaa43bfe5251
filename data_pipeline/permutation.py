"""The sample order: each epoch is a shuffle of the whole dataset, computed at any position without storing it.

Epoch e is a permutation of all samples keyed by (seed, e): an alternating Feistel network over the smallest power of
two that holds them, with cycle walking (Black and Rogaway 2002). A checkpoint stores only a position in this order, so
the order must never change. It therefore uses integer operations and its own keys, not a library's random generator.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROUNDS = 6  # even, so that unbalanced halves end where they began; three rounds already look random
STORED_BELOW = 64  # a Feistel network is visibly uneven on domains smaller than this
Positions = npt.NDArray[np.int64] | Sequence[int]


def shuffled_indices(positions: Positions, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    """The sample numbers at these global positions. Position p is in epoch p // num_samples.

    A call costs about 50 microseconds even for few positions, so ask for many at once.
    """
    assert num_samples > 0
    where = np.asarray(positions, dtype=np.int64)
    epochs, inside = np.divmod(where, num_samples)
    samples = np.empty_like(where)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        samples[chosen] = _permuted(inside[chosen], num_samples, seed, epoch)
    return samples


def _permuted(items: npt.NDArray[np.int64], num_items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    if num_items < STORED_BELOW:
        return _stored_permutation(num_items, seed, epoch)[items]
    bits = (num_items - 1).bit_length()
    keys = _round_keys(seed, epoch)
    values = _feistel(items.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= num_items)
    while outside.size:  # the domain is smaller than twice num_items: at most two walks on average
        values[outside] = _feistel(values[outside], bits, keys)
        outside = outside[values[outside] >= num_items]
    return values.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], bits: int, keys: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
    for key in keys:
        mixed = splitmix64(right ^ np.uint64(key)) >> np.uint64(64 - left_bits)
        left, right = right, left ^ mixed
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit affects the high bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"sample order:{seed}:{epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))


@functools.lru_cache(maxsize=64)
def _stored_permutation(num_items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    def rank(item: int) -> bytes:
        return hashlib.blake2b(f"sample order:{seed}:{epoch}:{item}".encode(), digest_size=16).digest()

    return np.array(sorted(range(num_items), key=rank), dtype=np.int64)
