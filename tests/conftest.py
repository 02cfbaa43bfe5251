"""Options of the whole suite."""

import random

import pytest

ROUNDS, SEED = 3, 16
"""Of an ordinary run of the suite: always the same layouts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    fuzz = parser.getgroup("fuzz", "random layouts against one process (pytest -m fuzz --rounds 50)")
    fuzz.addoption("--rounds", type=int, default=ROUNDS, help=f"how many random layouts are tried (default: {ROUNDS})")
    about = f"of the first round, the next has the next (default: {SEED}; with --rounds a new one each time)"
    fuzz.addoption("--seed", type=int, help=about)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = SEED if config.option.rounds == ROUNDS else random.SystemRandom().randrange(10**6)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzz: --rounds {config.option.rounds} --seed {config.option.seed}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `fuzz_seed` runs once for each round."""
    if "fuzz_seed" in metafunc.fixturenames:
        first, rounds = metafunc.config.option.seed, metafunc.config.option.rounds
        metafunc.parametrize("fuzz_seed", range(first, first + rounds), ids=lambda seed: f"seed{seed}")
