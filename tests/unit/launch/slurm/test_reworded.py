"""Decisions follow from data: they stay the same if every message of this program reads differently."""

import json
import subprocess
import sys
from typing import Any

from tests.support.runs import ROOT, environment


def decided(*flags: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.support.decisions", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_no_decision_depends_on_a_message_of_ours() -> None:
    plain, reworded = decided(), decided("--reworded")
    assert list(plain) == list(reworded)
    for scenario, found in plain.items():
        assert reworded[scenario]["decisions"] == found["decisions"], scenario
    differ = [scenario for scenario in plain if plain[scenario]["message"] != reworded[scenario]["message"]]
    assert len(differ) > 0.85 * len(plain), "the messages are not reworded"
    outcomes = {found["decisions"][0]["outcome"] for found in plain.values() if isinstance(found["decisions"][0], dict)}
    assert outcomes == {"finished", "stopped", "interrupted", "failed", "mistake", "lost"}, "scenarios are missing"
