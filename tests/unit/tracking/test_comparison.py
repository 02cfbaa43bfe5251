"""Runs side by side."""

import json
from html.parser import HTMLParser
from pathlib import Path

from pretrain.exit_codes import ExitCode
from pretrain.run.outcome import record_end, record_start
from pretrain.tracking.comparison import Cell, as_text, best_of, write_comparison
from tests.support.outcomes import end_of

HOSTILE = "model.name=</script><script>alert(1)</script>$x$"


def make_cell(folder: Path, label: str, loss: float, state: str = "finished") -> Cell:
    folder.mkdir()
    records = [
        {"kind": "train", "step": step, "time": float(step), "loss": loss + 1 / step, "tokens_per_second": 2000.0}
        for step in range(1, 21)
    ]
    records.append({"kind": "validation", "step": 20, "time": 21.0, "loss": loss, "bits_per_byte": loss / 4})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    record_start(folder, 0)
    record_end(folder, end_of(state, "SIGTERM"))
    return Cell(label, folder)


class Scripts(HTMLParser):
    """Counts script elements."""

    count = 0

    def handle_starttag(self, tag, attributes):
        self.count += tag == "script"


def test_the_table_names_figures_states_and_the_best(tmp_path):
    cells = [
        make_cell(tmp_path / "a", "optim.lr=1", 3.0),
        make_cell(tmp_path / "b", "optim.lr=2", 2.5),
        make_cell(tmp_path / "c", "optim.lr=3", 2.0, state="stopped"),
        Cell("optim.lr=4", tmp_path / "d"),
        Cell("optim.lr=5", tmp_path / "e", exit_code=ExitCode.MISTAKE),
    ]
    assert best_of(cells) is cells[1]
    rows = [line.split() for line in as_text(cells).splitlines()[1:]]
    assert rows[0] == ["optim.lr=1", "20", "3.0000", "0.7500", "2k", "finished"]
    assert rows[1] == ["optim.lr=2", "20", "2.5000", "0.6250", "2k", "finished,", "best"]
    assert rows[2] == ["optim.lr=3", "20", "-", "-", "2k", "stopped"], "its validation is not the final one"
    assert [row[-1] for row in rows[3:]] == ["started", "refused"]


def test_a_run_that_was_killed_is_not_called_training(tmp_path):
    cell = make_cell(tmp_path / "a", "x", 3.0)
    record_start(tmp_path / "a", 0)
    assert Cell(cell.label, cell.run_dir).state == "killed"
    assert Cell(cell.label, cell.run_dir, exit_code=137).state == "failed (exit code 137)"


def test_the_page_holds_curves_and_overrides_are_only_text(tmp_path):
    cells = [make_cell(tmp_path / "a", "optim.lr=1", 3.0), make_cell(tmp_path / "b", HOSTILE, 2.0)]
    write_comparison(tmp_path, "rates", cells)
    page = (tmp_path / "comparison.html").read_text()
    parser = Scripts()
    parser.feed(page)
    assert parser.count == 3 and "<script>alert" not in page
    assert "optim.lr=1" in page and "Bokeh" in page
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_trained_yet_is_a_page_too(tmp_path):
    write_comparison(tmp_path, "rates", [Cell("a", tmp_path / "a")])
    assert "no records yet" in (tmp_path / "comparison.html").read_text()
