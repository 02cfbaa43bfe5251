"""Normal numbers of which any can be computed by itself: number i of a stream is a function of the stream's key and i.

The bits are those of Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): one 64-bit
word for two numbers, four words for one value of the counter. NumPy keeps the bits of its bit generators in all
versions, but not the numbers that it makes of them. Box and Muller (1958) turn a word into two numbers, here by
additions, multiplications, divisions and square roots in fp32 alone. IEEE 754 defines the last bit of each of these, so
equal keys give equal bits on every machine. A library's logarithm or cosine would differ between machines.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORDS_PER_COUNT = 4
"""Words that Philox makes of one value of its counter."""
BATCH = 1 << 14
"""Words that are turned into numbers at a time: the intermediate results, 64 KiB each, stay in a core's cache."""

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]

# Coefficients, lowest first, of interpolations at Chebyshev nodes; the errors are smaller than the rounding of fp32.
LOG = (2.0, 0.66666815, 0.39974851, 0.2992439)
"""ln((1 + s) / (1 - s)) / s as a polynomial of s^2, for |s| up to (sqrt(2) - 1) / (sqrt(2) + 1)."""
SINE = (1.0, -0.166666507, 0.00833203579, -0.000195039043)
"""sin(a) / a as a polynomial of a^2, for |a| up to pi / 4."""
COSINE = (0.9999999723, -0.4999985642, 0.04165501492, -0.001358577926)
"""cos(a) as a polynomial of a^2, for |a| up to pi / 4."""
BITS_OF_ROOT_HALF = np.int32(0x3F3504F3)
"""sqrt(1/2) in fp32, read as an integer."""


class NormalStream:
    """The stream of standard normal numbers that belongs to (seed, name)."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
        self._philox = np.random.Philox(key=int.from_bytes(digest, "little"))
        self._count = 0  # of the generator
        self._work = _Workspace()

    def fill(self, out: Floats, first: int, std: float = 1.0) -> None:
        """Write numbers first, first + 1, ... times `std` into out [n], which is contiguous."""
        self.fill_rows(out.reshape(1, -1), first, 0, std)

    def fill_rows(self, out: Floats, first: int, stride: int, std: float = 1.0) -> None:
        """Write numbers first + i * stride + j, times `std`, into row i and column j of out [rows, n]."""
        rows, columns = out.shape
        if not columns:
            return
        wide = columns // 2 + 1  # words that a row may need, whether it starts with the first number of a word or not
        together = max(1, BATCH // wide)
        for top in range(0, rows, together):
            starts = [first + i * stride for i in range(top, min(top + together, rows))]
            for left in range(0, wide, BATCH):
                words = np.empty((len(starts), min(BATCH, wide - left)), np.uint64)
                for row, start in zip(words, starts, strict=True):
                    row[:] = self._words(start // 2 + left, len(row))
                numbers = self._work.normals(words.reshape(-1), std).reshape(len(starts), -1)
                for i, start in enumerate(starts):
                    _place(numbers[i], out[top + i], 2 * left - start % 2)

    def _words(self, first: int, number: int) -> Words:
        count, skipped = divmod(first, WORDS_PER_COUNT)
        self._philox.advance((count - self._count) % 2**256)
        words: Words = self._philox.random_raw(skipped + number)
        self._count = count - (-len(words) // WORDS_PER_COUNT)
        return words[skipped:]


def _place(numbers: Floats, out: Floats, at: int) -> None:
    """Copy what falls into `out` if the first of `numbers` is at index `at`, which may be -1."""
    skipped = max(0, -at)
    end = min(len(out), at + len(numbers))
    out[at + skipped : end] = numbers[skipped : end - at]


class _Workspace:
    """Intermediate results, allocated once."""

    def __init__(self) -> None:
        self._floats = np.empty((5, BATCH), np.float32)
        self._integers = np.empty((2, BATCH), np.int32)
        self._numbers = np.empty(2 * BATCH, np.float32)

    def normals(self, words: Words, std: float) -> Floats:
        """Two numbers of each of up to `BATCH` words; they stay valid until the next call."""
        halves = words.astype("<u8", copy=False).view("<u4")
        n = len(words)
        (radius, angle, square, sine, cosine), (low, turned) = self._floats[:, :n], self._integers[:, :n]
        numbers = self._numbers[: 2 * n]
        _radius(halves[0::2], std, radius, (angle, square, sine), turned)
        np.copyto(low, halves[1::2].view("<i4"))

        # A point of the circle's quarter around (1, 0), by angle. Its signs are the two lowest bits.
        np.copyto(angle, low, casting="unsafe")
        angle *= np.float32(np.pi / 4 / 2**31)
        np.multiply(angle, angle, out=square)
        _polynomial(COSINE, square, cosine)
        _polynomial(SINE, square, sine)
        sine *= angle
        for i, combine in enumerate((np.subtract, np.add)):  # sqrt(2) times cosine and sine of angle + pi / 4
            combine(cosine, sine, out=angle)
            angle *= radius
            np.left_shift(low, 31 - i, out=turned)
            turned &= np.int32(-(2**31))
            np.bitwise_xor(angle.view(np.int32), turned, out=turned)
            numbers[i::2] = turned.view(np.float32)
        return numbers


def _radius(
    bits: NDArray[np.uint32], std: float, out: Floats, work: tuple[Floats, Floats, Floats], integers: NDArray[np.int32]
) -> None:
    """std * sqrt(-ln u) for u = (bits + 1/2) / 2^32, which is at most 1; the largest is 4.8 std."""
    mantissa, ratio, square = work
    np.copyto(mantissa, bits, casting="unsafe")
    mantissa += np.float32(0.5)
    as_integer = mantissa.view(np.int32)
    # u * 2^32 = mantissa * 2^exponent, with a mantissa between sqrt(1/2) and sqrt(2).
    np.subtract(as_integer, BITS_OF_ROOT_HALF, out=integers)
    integers >>= 23
    np.left_shift(integers, 23, out=square.view(np.int32))
    as_integer -= square.view(np.int32)
    np.subtract(np.int32(32), integers, out=integers)
    np.copyto(out, integers, casting="unsafe")
    out *= np.float32(np.log(2))
    np.add(mantissa, np.float32(1), out=square)
    np.subtract(mantissa, np.float32(1), out=ratio)
    ratio /= square
    np.multiply(ratio, ratio, out=square)
    _polynomial(LOG, square, mantissa)
    ratio *= mantissa
    out -= ratio
    np.sqrt(out, out=out)
    out *= np.float32(std)


def _polynomial(coefficients: Sequence[float], x: Floats, out: Floats) -> None:
    """The polynomial at x, by Horner's rule."""
    *lower, highest = coefficients
    np.multiply(x, np.float32(highest), out=out)
    for i, coefficient in enumerate(reversed(lower)):
        if i:
            out *= x
        out += np.float32(coefficient)
