"""Divisors, the values nearest to one, and lists of them in words."""

import math
from collections.abc import Iterable, Sequence


def either(values: Sequence[int]) -> str:
    """`1, 2 or 4`."""
    return ", ".join(map(str, values[:-1])) + f" or {values[-1]}" if len(values) > 1 else str(values[0])


def nearest(values: Iterable[int], asked: int, count: int = 3) -> list[int]:
    """The `count` values nearest to `asked`, ascending."""
    return sorted(sorted(values, key=lambda n: abs(n - asked))[:count])


def divisors(number: int) -> list[int]:
    """Ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
