"""The table says what is in the records: losses, times, repeated work, divergence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.load import load_run_config, to_yaml
from pretrain.exit_codes import ExitCode
from pretrain.outcome.record import success
from pretrain.run.outcome import record_end, record_start
from pretrain.scaling.ladder.cells import Cell, build_cells
from pretrain.scaling.ladder.spec import read_spec
from pretrain.scaling.ladder.table import points_csv, table_of
from pretrain.scaling.ladder.write_table import rows_as_json, table_text, write_tables
from tests.unit.scaling.ladder.files import write_file


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.chdir(tmp_path)
    return build_cells(read_spec(write_file(tmp_path)))[0]


def write_run(cell: Cell, records: list[dict[str, Any]], *, code: ExitCode = ExitCode.DONE, **files: str) -> Path:
    folder = Path(cell.run_dir)
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"time": 1.0, **record}) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "config.yaml").write_text(to_yaml(load_run_config(cell.overrides)))
    data = {"tokenizer_fingerprint": "abc", "corpus_digest": "def"}
    (folder / "description.json").write_text(json.dumps({"layout": {"world_size": 2}, "data": data}))
    record_start(folder, 0)
    record_end(folder, success(code))
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def train(step: int, loss: float | str = 3.0, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss, "bad_steps": 0, "seconds_step": 36.0, **values}


def validation(step: int, loss: float | str, samples: int = 4) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "loss": loss, "bits_per_byte": 1.5, "samples": samples}


def test_losses_are_those_of_the_records(cell: Cell) -> None:
    records = [train(10), *(validation(step, loss) for step, loss in ((10, 3.0), (20, 2.5), (30, 2.3), (40, 2.1)))]
    write_run(cell, [*records, train(40, 2.2, mfu_6n_6lhs=0.4), validation(41, 2.0, samples=50)])
    (row,) = table_of([cell])
    assert row.values["validation_loss"] == 2.0 and row.values["bits_per_byte"] == 1.5
    assert row.values["smoothed_validation_loss"] == pytest.approx((2.5 + 2.3 + 2.1) / 3)
    assert (row.values["train_loss"], row.values["mfu"], row.values["diverged"]) == (2.2, 0.4, False)
    assert (row.values["tokenizer"], row.values["validation_set"]) == ("abc", "def")
    header, line = points_csv([row]).splitlines()
    values = dict(zip(header.split(","), line.split(","), strict=True))
    assert (values["validation_loss"], values["role"]) == ("2.0", "fit")


def test_a_run_that_is_not_finished_has_no_loss(cell: Cell) -> None:
    write_run(cell, [train(10), validation(10, 3.0)], code=ExitCode.STOPPED)
    (row,) = table_of([cell])
    assert not row.is_complete and row.values["validation_loss"] is None and row.values["step"] == 10
    assert points_csv([row]).count("\n") == 1
    (missing,) = table_of([replace(cell, overrides=("run.dir=nowhere",))])
    assert missing.values["state"] == "not started"


def test_hours_count_every_rank_and_repeated_steps(cell: Cell) -> None:
    replaced = "".join(json.dumps({"time": 1.0, **train(step)}) + "\n" for step in (30, 40, 35, 40))
    write_run(cell, [train(10), train(20), validation(20, 2.0)], **{"metrics_replaced.jsonl": replaced})
    (row,) = table_of([cell])
    assert row.values["gpu_hours"] == pytest.approx(2 * 20 * 36 / 3600)
    # Two pieces: 30 to 40, of which the first record counts as one step, and 35 to 40.
    assert row.values["repeated_gpu_hours"] == pytest.approx(2 * (11 + 6) * 36 / 3600)
    assert row.values["restarts"] == 2
    assert "diverged" not in table_text([row])


@pytest.mark.parametrize("bad", [{"loss": "nan"}, {"bad_steps": 1}])
def test_divergence_is_flagged(cell: Cell, bad: dict[str, Any], tmp_path: Path) -> None:
    write_run(cell, [train(10, **bad), validation(10, "nan")])
    (row,) = table_of([cell])
    assert row.values["diverged"] is True and "diverged" in table_text([row])
    assert json.loads(rows_as_json([row]))[0]["validation_loss"] == "nan"
    write_tables(tmp_path, [row])
    assert "nan" in (tmp_path / "points.csv").read_text() and "true" in (tmp_path / "table.csv").read_text()
