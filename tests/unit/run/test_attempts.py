"""attempts.jsonl: what was written is read, whatever a kill left of it."""

import json
from pathlib import Path

from pretrain.run.attempts import ATTEMPTS_FILE, Attempt, began, ended, log_folder, next_attempt, read_attempts


def begin(run_dir: Path, number: int) -> None:
    began(run_dir, number, job="123", restart=number - 1, nodes=["node1", "node2"], ranks=4, step=120)


def test_attempt_lines_keep_their_format(tmp_path: Path) -> None:
    begin(tmp_path / "new", 1)
    ended(tmp_path / "new", 1, outcome="stopped", exit_code=75, cause="SIGTERM,\nsaved", step=340)
    first, second = map(json.loads, (tmp_path / "new" / ATTEMPTS_FILE).read_text().splitlines())
    assert first.pop("time") <= second.pop("time")
    facts = {"job": "123", "restart": 0, "nodes": ["node1", "node2"], "ranks": 4, "step": 120}
    assert first == {"attempt": 1, "event": "began", **facts}
    end = {"outcome": "stopped", "exit_code": 75, "cause": "SIGTERM, saved", "step": 340}
    assert second == {"attempt": 1, "event": "ended", **end}


def test_an_attempt_without_an_end_keeps_its_number(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == [] and next_attempt(tmp_path) == 1
    begin(tmp_path, 1)
    begin(tmp_path, 2)
    ended(tmp_path, 2, outcome="failed", exit_code=4, cause="diverged", step=150, diverged_at=157)
    one, two = read_attempts(tmp_path)
    assert one.ended is None and one.began is not None and one.began.nodes == ("node1", "node2")
    assert two.ended is not None and (two.ended.exit_code, two.ended.diverged_at) == (4, 157)
    assert next_attempt(tmp_path) == 3


def test_an_unrecorded_attempt_with_logs_keeps_its_number(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    for name in ("attempt-0002", "attempt-x", "other"):
        log_folder(tmp_path, 1).with_name(name).mkdir(parents=True)
    assert next_attempt(tmp_path) == 3


def test_a_line_torn_at_any_place_spoils_no_other(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    path = tmp_path / ATTEMPTS_FILE
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        ended(tmp_path, 1, outcome="lost", exit_code=None, cause="unknown", step=0)
        (attempt,) = read_attempts(tmp_path)
        assert attempt.ended is not None and attempt.ended.outcome == "lost"
        assert (attempt.began is None) == (length < len(whole) - 1)


def test_lines_that_are_not_attempts_are_skipped(tmp_path: Path) -> None:
    (tmp_path / ATTEMPTS_FILE).write_text('[]\n7\n{"attempt": 1}\n{"attempt": 2, "event": "began", "nodes": []}\n')
    assert read_attempts(tmp_path) == []
    (tmp_path / ATTEMPTS_FILE).write_text('{"attempt": "x", "event": "ended"}\n')
    assert read_attempts(tmp_path) == list[Attempt]()
