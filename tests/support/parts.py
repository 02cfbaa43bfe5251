"""Cases of a law that only `launch/test.sh --all` runs."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def full_except(cases: Iterable[Any], short: Container[Any]) -> list[Any]:
    """Parameters of a test: all cases, marked `full` except those in `short`, which every run of the tests has."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if case in short else pytest.mark.full)
        for case in cases
    ]
