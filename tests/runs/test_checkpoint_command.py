"""`pretrain checkpoint` on checkpoints of real runs, as a user calls it."""

import json
import math
import shutil
from pathlib import Path

from tests.support.runs import files_below, user_error


def test_checkpoints_of_a_run_are_listed_verified_and_compared(shared, finished_run):
    before = files_below(finished_run)
    done = shared.command("checkpoint", "list", str(finished_run), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["step"], row["tokens"], row["whole"]) for row in rows] == [
        (step, step * 8 * 32, True) for step in (8, 12, 16)
    ]
    assert [row["step"] for row in rows if row["next_resume"]] == [16]
    assert all(row["saved_at"] and row["layout"]["zero_stage"] == 1 for row in rows)

    done = shared.command("checkpoint", "verify", str(finished_run))
    assert done.returncode == 0 and done.stdout.count(": whole: ") == 3, done.stdout

    first, last = (finished_run / "checkpoints" / f"step-{step:08d}" for step in (8, 16))
    done = shared.command("checkpoint", "diff", str(first), str(last), "--match", "weight/*norm*")
    assert done.returncode == 1, done.stderr
    assert "state: state.step: 8 | 16" in done.stdout and "elements differ, at most by" in done.stdout
    assert "config: " not in done.stdout and "exp_avg" not in done.stdout
    assert files_below(finished_run) == before


def test_inspect_shows_run_data_and_versions(shared, finished_run, dataset):
    done = shared.command("checkpoint", "inspect", str(finished_run), "--json", "--match", "weight/*")
    facts = json.loads(done.stdout)
    assert facts["run"]["name"] == "finished" and facts["data"]["name"] == "synthetic" and facts["versions"]["torch"]
    stored = json.loads((dataset / "manifest.json").read_text())["manifest"]
    assert facts["data"]["tokenizer_fingerprint"] == stored["tokenizer"]["fingerprint"]
    assert sum(math.prod(tensor["shape"]) for tensor in facts["tensors"]) == facts["parameters"]


def test_prune_leaves_the_newest_and_a_bad_path_is_a_clear_line(shared, finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    done = shared.command("checkpoint", "prune", str(run), "--keep-last", "1")
    assert done.returncode == 0 and done.stdout.endswith(" freed\n"), done.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000016"]
    message = user_error(shared.command("checkpoint", "verify", str(tmp_path / "elsewhere")))
    assert message.endswith(
        "elsewhere: no such folder\n  hint: give a run folder, such as runs/NAME, or a checkpoint in it"
    )
