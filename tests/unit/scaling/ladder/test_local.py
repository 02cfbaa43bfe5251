"""Local runs: a branch starts once its trunk has saved, so many run at a time, and a failure is reported."""

import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from pretrain.exit_codes import ExitCode
from pretrain.outcome.record import success
from pretrain.scaling.ladder.cells import Cell, build_cells, checkpoint_of
from pretrain.scaling.ladder.local import LocalRuns
from pretrain.scaling.ladder.spec import read_spec
from tests.unit.scaling.ladder.files import SIZES, write_file

END = json.dumps({"started": 1.0, "resumed": 1.0, "end": success(ExitCode.DONE, "trained").to_dict()})


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.chdir(tmp_path)
    tokens, sizes = {"multiples": [0.1, 0.2, 0.4], "trunk": True}, {**SIZES, "layers": [1]}
    return build_cells(read_spec(write_file(tmp_path, tokens=tokens, sizes=sizes)))


def stand_in(cells: Sequence[Cell], body: str = "") -> "object":
    """A shell command for each cell: what a run leaves in its folder, without training."""
    saved = " ".join(checkpoint_of(cells[0], cell.branch_step) for cell in cells[1:])

    def command(cell: Cell) -> list[str]:
        save = f"mkdir -p {saved}" if cell.trunk is None else f"test -d {checkpoint_of(cells[0], cell.branch_step)}"
        end = f"mkdir -p {cell.run_dir}; echo '{END}' > {cell.run_dir}/outcome.json"
        return ["bash", "-c", f"echo {cell.name} >> order; {body or save} && {{ {end}; }}"]

    return command


def run(cells: Sequence[Cell], command: object, at_once: int = 1) -> tuple[int, list[str], list[str]]:
    said: list[str] = []
    code = LocalRuns(Path("ladders/small"), cells, at_once, said.append, command).run()  # type: ignore[arg-type]
    return code, Path("order").read_text().split() if Path("order").exists() else [], said


@pytest.mark.parametrize("at_once", [1, 3])
def test_branches_follow_their_trunk(cells: list[Cell], at_once: int) -> None:
    code, order, _ = run(cells, stand_in(cells), at_once)
    assert code == ExitCode.DONE and order[0] == cells[0].name and sorted(order) == sorted(c.name for c in cells)
    Path("order").unlink()
    assert run(cells, stand_in(cells), at_once)[:2] == (ExitCode.DONE, [])  # nothing is missing


def test_without_its_trunk_no_branch_starts(cells: list[Cell]) -> None:
    code, order, said = run(cells, stand_in(cells, body="exit 3"))
    assert (code, order) == (ExitCode.FAILED, [cells[0].name])
    assert f"{cells[1].name}: not started, because its trunk {cells[0].name} did not reach step" in said[-2]


def test_a_signal_stops_the_ladder(cells: list[Cell]) -> None:
    wait = f"trap 'exit {ExitCode.STOPPED.value}' TERM; touch ready; while :; do read -t 0.1 < <(:); sleep 0.1; done"

    def ask() -> None:
        while not Path("ready").exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    code, order, _ = run(cells, stand_in(cells, body=wait))
    asking.join()
    assert (code, order) == (ExitCode.STOPPED, [cells[0].name])
