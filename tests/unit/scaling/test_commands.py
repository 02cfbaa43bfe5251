"""`pretrain scale fit`, `predict` and `compare` on the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.cli import main
from pretrain.scaling.laws.points import Points
from pretrain.scaling.run_plan import Preset, RunPlan, flops_for_hours, nearest_preset, presets
from tests.unit.scaling.ladders import LAW, isoflop_ladder, ladder


def write(points: Points, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "parameters", "tokens", "loss"])
        for each in points.points:
            rows.writerow([each.name, repr(each.parameters), repr(each.tokens), repr(each.loss)])
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    try:
        assert main(["scale", *words]) == code
    except SystemExit as end:
        assert end.code == code
    out, err = capsys.readouterr()
    return err if code else out


def test_fit_prints_the_law_and_what_it_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(isoflop_ladder(), tmp_path / "runs.csv")
    words = [
        "fit",
        path,
        "--leave-out-highest",
        "2",
        "--over-penalty",
        "2",
        "--csv",
        str(tmp_path / "out" / "points.csv"),
    ]
    text = said(capsys, *words, "--draws", "50")
    for part in (
        "33 points of 33 sizes",
        "left out 2: one of the 2 highest losses: N=",
        "alpha",
        "95 % interval (50 bootstrap refits)",
        "points that the law over-estimates count 2 times",
        "check: fitted without",
        "approach 2 (IsoFLOP): best N ~ C^0.5",
        "envelope: L(C) =",
    ):
        assert part in text, part
    with (tmp_path / "out" / "points.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 35


def test_fit_as_json_has_no_nan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = said(capsys, "fit", write(ladder(), tmp_path / "points.csv"), "--json", "--draws", "20")
    facts = json.loads(text, parse_constant=pytest.fail)
    assert facts["points"] == 30 and facts["law"]["beta"]["low"] < facts["law"]["beta"]["high"]
    assert "isoflop" in facts["missing"]


def test_the_folder_of_a_ladder_is_its_points(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = said(capsys, "fit", str(tmp_path), code=2)
    assert "holds no points.csv\n  hint: `pretrain scale table" in text
    write(ladder(), tmp_path / "points.csv")
    assert "30 points of 6 sizes" in said(capsys, "fit", str(tmp_path), "--draws", "20")


def test_predict_names_the_nearest_preset_and_warns_if_far(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(ladder(), tmp_path / "points.csv")
    text = said(capsys, "predict", path, "--flops", "5e23", "--draws", "20")
    assert "nearest preset: model=llama_70b" in text and "warning: this is far beyond the points" in text
    facts = json.loads(said(capsys, "predict", path, "--tokens", "2e9", "--size", "1e8", "--json", "--draws", "20"))
    assert facts["plan"] is None and facts["loss"]["value"] == pytest.approx(float(LAW.loss(1e8, 2e9)), rel=0.01)


def test_predict_plans_the_run_of_a_budget_of_hours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, words = write(ladder(), tmp_path / "points.csv"), ["--draws", "20", "--json", "engine=zero3_bf16"]
    machine = ["--hardware", "h100", "--ranks", "16", "--price", "2"]
    facts = json.loads(said(capsys, "predict", path, "--gpu-hours", "2000", *machine, *words))
    assert facts["plan"]["gpu_hours"] == pytest.approx(2000, rel=0.1)
    assert facts["plan"]["cost"] == pytest.approx(2 * facts["plan"]["gpu_hours"])
    assert "--gpu-hours needs a machine" in said(capsys, "predict", path, "--gpu-hours", "2000", code=2)


def test_compare_prints_multiplier_and_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = write(ladder(), tmp_path / "base" / "points.csv")
    variant = write(ladder(seed=5), tmp_path / "variant" / "points.csv")
    text = said(capsys, "compare", str(Path(base).parent), variant, "--draws", "20")
    assert "effective compute multiplier: 1" in text and "undecided" in text
    facts = json.loads(said(capsys, "compare", base, variant, "--draws", "20", "--json"))
    assert facts["verdict"] == "undecided" and len(facts["runs"]) == 30


def test_presets_are_sorted_and_the_nearest_is_a_ratio() -> None:
    sizes = [preset.parameters for preset in presets()]
    assert sizes == sorted(sizes) and nearest_preset(7.0e9).name == "llama_8b"


def test_the_search_for_a_budget_ends_when_presets_alternate() -> None:
    small, large = presets()[0], presets()[-1]

    class Planned(RunPlan):
        flops_per_second = 1.0

        def __init__(self, preset: Preset) -> None:
            object.__setattr__(self, "preset", preset)

    calls: list[str] = []

    def plan(preset: Preset, tokens: float) -> RunPlan:
        calls.append(preset.name)
        return Planned(preset)

    sizes = iter([small.parameters, large.parameters] * 5)
    found = flops_for_hours(10, lambda flops: (float(next(sizes)), 1.0), plan)
    assert calls == [small.name, large.name] and found.flops == 36_000 and np.isfinite(found.flops)
