"""Options of the whole suite."""

import random

import pytest
from hypothesis import settings

ROUNDS, SEED = 3, 16
"""Of an ordinary run of the suite: always the same layouts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    fuzz = parser.getgroup("fuzz", "random layouts against one process (pytest -m fuzz --rounds 50)")
    fuzz.addoption("--rounds", type=int, default=ROUNDS, help=f"how many random layouts are tried (default: {ROUNDS})")
    about = f"of the first round, the next has the next (default: {SEED}; with --rounds a new one each time)"
    fuzz.addoption("--seed", type=int, help=about)


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("any machine", deadline=None)  # a busy one takes its time
    settings.load_profile("any machine")
    if config.option.seed is None:
        config.option.seed = SEED if config.option.rounds == ROUNDS else random.SystemRandom().randrange(10**6)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin first, so that none of them is left over at the end of a run of several workers."""
    order = ("test_readme.py", "runs")
    places = {place: number for number, place in enumerate(order)}
    items.sort(key=lambda item: min((places[part] for part in item.path.parts if part in places), default=len(order)))


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzz: --rounds {config.option.rounds} --seed {config.option.seed}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `fuzz_seed` runs once for each round."""
    if "fuzz_seed" in metafunc.fixturenames:
        first, rounds = metafunc.config.option.seed, metafunc.config.option.rounds
        metafunc.parametrize("fuzz_seed", range(first, first + rounds), ids=lambda seed: f"seed{seed}")
