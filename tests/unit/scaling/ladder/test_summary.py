"""The summary of a ladder goes to wandb as one run of its group, or nowhere if tracking is off."""

import json
from pathlib import Path

import pytest

from pretrain.scaling.ladder.cells import build_cells
from pretrain.scaling.ladder.spec import read_spec
from pretrain.scaling.ladder.summary import send_summary
from pretrain.scaling.ladder.table import table_of
from tests.unit.scaling.ladder.files import CONTENT, write_file
from tests.unit.tracking.test_sinks import wandb_records


@pytest.mark.slow
def test_the_group_gets_one_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    rows = table_of(build_cells(read_spec(write_file(tmp_path))))
    folder = tmp_path / "ladders" / "small"
    folder.mkdir(parents=True)
    send_summary(folder, rows, {"alpha": 0.3})
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    records = list(wandb_records(path))
    (run,) = {(r.run.display_name, r.run.run_group, r.run.job_type) for r in records if r.HasField("run")}
    assert run == ("small-summary", "small", "summary")
    summary = {item.key: item.value_json for r in records if r.HasField("summary") for item in r.summary.update}
    assert (json.loads(summary["runs"]), json.loads(summary["alpha"])) == (len(rows), 0.3)


def test_without_tracking_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*CONTENT["overrides"], "tracking=off"]
    send_summary(tmp_path, table_of(build_cells(read_spec(write_file(tmp_path, overrides=overrides)))))
    assert not (tmp_path / "wandb").exists()
