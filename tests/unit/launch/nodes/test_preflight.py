"""The real command: nodes that meet in a run folder."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.nodes.facts import source_digest
from tests.support.runs import ROOT, environment


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    out: str
    """The output of node 0."""
    said: str
    """The messages of all nodes."""


def preflight(run_dirs: list[Path], *options: str, count: int | None = None) -> Ended:
    """A node for each folder, of `count`."""
    size = count or len(run_dirs)
    running = []
    for index, run_dir in enumerate(run_dirs):
        names = " ".join(f"node{place + 1}" for place in range(size))
        node = {"RANK": str(index), "WORLD_SIZE": str(size), "NODE_NAME": f"node{index + 1}", "NODE_NAMES": names}
        command = [sys.executable, "-m", "launch.nodes.preflight", "--run-dir", str(run_dir), "--token", "t"]
        demands = ["--min-memory-gb", "0.01", "--min-disk-gb", "0.01", *options]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen([*command, *demands], env=environment(node), text=True, **streams))
    outputs = [process.communicate(timeout=60) for process in running]
    codes = [process.returncode for process in running]
    return Ended(codes, outputs[0][0], "".join(err for _, err in outputs))


def test_good_nodes_meet_in_a_new_folder_and_leave_nothing(tmp_path: Path) -> None:
    found = preflight([tmp_path / "runs" / "new"] * 3)
    assert found.codes == [0, 0, 0], found.said
    assert "3 node(s) good" in found.said and json.loads(found.out.splitlines()[-1])["bad_nodes"] == []
    assert list((tmp_path / "runs" / "new").iterdir()) == []


def test_a_node_that_does_not_come_is_named_in_the_last_line(tmp_path: Path) -> None:
    found = preflight([tmp_path] * 2, "--seconds", "6", count=3)
    assert found.codes == [3, 0]
    assert "bad node node3: did not report within 6 s" in found.said
    assert json.loads(found.out.splitlines()[-1])["bad_nodes"] == ["node3"]


def test_both_nodes_report_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    found = preflight([tmp_path / "one", tmp_path / "two"], "--seconds", "2")
    assert found.codes == [2, 2]
    assert "none of the 1 other nodes found it" in found.said
    assert "is not the folder that node 0 sees" in found.said


def test_a_run_folder_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = preflight([tmp_path / "file" / "run"])
    assert found.codes == [2] and "cannot write there" in found.said and "Traceback" not in found.said


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, launch.nodes.preflight, launch.ssh.hosts, launch.ssh.host_agent; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


def test_the_digest_of_the_sources_shows_any_change(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    digests = [source_digest(tmp_path)]
    for name, text in (("a.py", "x = 1\n"), ("b.py", ""), ("a.py", "x = 2\n"), ("c.yaml", "x: 1\n")):
        (tmp_path / "pretrain" / name).write_text(text)
        digests.append(source_digest(tmp_path))
    assert len(set(digests)) == len(digests)
    (tmp_path / "pretrain" / "a.pyc").write_bytes(os.urandom(8))
    assert source_digest(tmp_path) == digests[-1]
    assert len(source_digest(ROOT)) == 12
