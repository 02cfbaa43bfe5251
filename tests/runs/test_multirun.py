"""A grid of real runs, one after the other."""

import pytest

from tests.support.runs import train_records, validation_records


@pytest.mark.full
def test_a_grid_trains_each_combination_and_ends_with_a_table(place):
    rates = [override for override in place.train_overrides("x") if not override.startswith(("run.name", "optim.lr"))]
    done = place.command("train", "-m", "--name", "rates", *rates, "optim.lr=1e-3,3e-3", "train.max_steps=8")
    assert done.returncode == 0, done.stderr
    names = ["rates-0", "rates-1"]
    assert all(max(train_records(place.run_dir(name))) == 8 for name in names)
    final = [validation_records(place.run_dir(name))[8]["loss"] for name in names]
    rows = [line for line in done.stdout.splitlines() if line.startswith("optim.lr=")]
    assert [f"{loss:.4f}" in row for loss, row in zip(final, rows, strict=True)] == [True, True]
    assert (place.folder / "sweeps/rates/comparison.html").exists()
