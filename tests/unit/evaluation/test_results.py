"""evaluation.json: what a later call replaces, and what stays."""

import json
import math

import pytest

from pretrain.config.errors import RunError
from pretrain.evaluation.results import Result, ResultsFile


def result(step: int, task: str, value: float, digest: str = "a") -> Result:
    return Result(f"step-{step:08d}", task, 3, {"accuracy": (value, math.nan)}, 0.5, digest)


def stored(folder):
    content = (folder / "evaluation.json").read_text()
    assert "NaN" not in content
    return {(each["checkpoint"][-1], each["task"]): each["figures"]["accuracy"][0] for each in json.loads(content)}


def test_each_result_is_written_at_once(tmp_path):
    file = ResultsFile(tmp_path, "run")
    file.add([result(1, "t", 0.1)])
    assert stored(tmp_path) == {("1", "t"): 0.1}
    assert not (tmp_path / "evaluation.png").exists()
    file.add([result(2, "t", 0.2)])
    assert stored(tmp_path) == {("1", "t"): 0.1, ("2", "t"): 0.2}
    assert (tmp_path / "evaluation.png").exists()


def test_a_later_call_replaces_its_own_results_only(tmp_path):
    ResultsFile(tmp_path, "run").add([result(1, "t", 0.1), result(1, "u", 0.3), result(2, "t", 0.2)])
    ResultsFile(tmp_path, "run").add([result(1, "t", 0.5)])
    assert stored(tmp_path) == {("1", "t"): 0.5, ("1", "u"): 0.3, ("2", "t"): 0.2}


def test_results_of_an_earlier_version_of_a_task_go(tmp_path):
    ResultsFile(tmp_path, "run").add([result(1, "t", 0.1), result(1, "u", 0.3), result(2, "t", 0.2)])
    ResultsFile(tmp_path, "run").add([result(2, "t", 0.5, "b")])
    assert stored(tmp_path) == {("1", "u"): 0.3, ("2", "t"): 0.5}


def test_results_come_back_as_they_were(tmp_path):
    file = ResultsFile(tmp_path, "run")
    file.add([result(1, "t", 0.1)])
    (again,) = ResultsFile(tmp_path, "run").kept
    assert again.figures["accuracy"][0] == 0.1 and math.isnan(again.figures["accuracy"][1])


@pytest.mark.parametrize("content", ["{", "[1]", '[{"checkpoint": "step-1"}]', "3"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(RunError, match=r"evaluation.json: does not hold results of pretrain evaluate"):
        ResultsFile(tmp_path, "run")
    assert (tmp_path / "evaluation.json").read_text() == content
