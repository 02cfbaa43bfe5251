"""The report fits the finished runs, predicts the targets, and says why if there is no law."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.cli import run_command
from pretrain.commands.table import parse
from pretrain.config.load import load_run_config, to_yaml
from pretrain.exit_codes import ExitCode
from pretrain.outcome.record import success
from pretrain.run.outcome import record_end, record_start
from pretrain.scaling.ladder.cells import Cell, build_cells
from pretrain.scaling.ladder.folder import folder_of, write_ladder
from pretrain.scaling.ladder.spec import read_spec
from tests.unit.scaling.ladder.files import CONTENT, SIZES, write_file


def law(cell: Cell) -> float:
    return 1.8 + 40 * cell.counted**-0.4 + 300 * cell.tokens**-0.4


def finish(cells: Sequence[Cell]) -> None:
    """Write the records of finished runs, with losses on a law."""
    for cell in cells:
        folder = Path(cell.run_dir)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(load_run_config(cell.overrides)))
        data = {"tokenizer_fingerprint": "abc", "corpus_digest": "def"}
        (folder / "description.json").write_text(json.dumps({"data": data}))
        values = {"step": cell.steps, "time": 1.0, "loss": law(cell), "bits_per_byte": 1.0, "samples": 4}
        (folder / "metrics.jsonl").write_text(json.dumps({"kind": "validation", **values}) + "\n")
        record_start(folder, 0)
        record_end(folder, success(ExitCode.DONE))


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.chdir(tmp_path)
    file = write_file(
        tmp_path,
        overrides=[*CONTENT["overrides"], "tracking=off"],
        sizes={**SIZES, "layers": [1, 2, 3]},
        tokens={"multiples": [0.1, 0.4, 1.6]},
        targets={"sizes": {**SIZES, "layers": [4]}, "tokens": {"multiples": [0.4]}},
    )
    cells = build_cells(read_spec(file))
    write_ladder(folder_of("small"), cells)
    return cells


def scale(*words: str) -> int:
    return run_command("scale", parse("scale", words))


def test_the_target_is_predicted(cells: list[Cell], capsys: pytest.CaptureFixture[str]) -> None:
    finish(cells)
    assert scale("report", "small") == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("d4w128-0.4x: predicted")]
    assert f"measured {law(cells[-1]):.4f}, error +0.00%" in line or "error -0.00%" in line
    folder = folder_of("small")
    page = (folder / "report.html").read_text()
    assert line.partition(";")[0] in page and "approach 3" in page and "Prediction against measurement" in page
    for name in ("loss_against_compute", "residuals", "predictions"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "d4w128" not in "".join(row for row in (folder / "points.csv").read_text().splitlines() if ",fit," in row)


def test_too_few_runs_give_a_page_without_a_law(cells: list[Cell], capsys: pytest.CaptureFixture[str]) -> None:
    assert scale("report", "small") == ExitCode.MISTAKE
    assert "no run is finished yet" in capsys.readouterr().err
    finish(cells[:2])
    assert scale("report", "small") == 0
    assert "2 points remain, and the " in (folder_of("small") / "report.html").read_text()


def test_a_loss_that_is_not_a_number_is_named(cells: list[Cell], capsys: pytest.CaptureFixture[str]) -> None:
    finish(cells)
    metrics = Path(cells[0].run_dir) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace(f'"loss": {law(cells[0])}', '"loss": "nan"'))
    assert scale("fit", "ladders/small") == ExitCode.MISTAKE  # there is no table yet
    assert scale("table", "small") == 0
    capsys.readouterr()
    assert scale("fit", "ladders/small", "--draws", "20") == ExitCode.MISTAKE
    assert f"{cells[0].name}: validation_loss is nan" in capsys.readouterr().err


def test_n_with_embeddings_is_fitted_on_request(cells: list[Cell], capsys: pytest.CaptureFixture[str]) -> None:
    finish(cells)
    write_ladder(folder_of("small"), [replace(cell, counted=cell.parameters) for cell in cells])
    assert scale("report", "small") == 0
    assert "N is 'parameters'" in capsys.readouterr().out
