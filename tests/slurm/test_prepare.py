"""`prepare.executor=slurm` on a real Slurm: workers are its jobs, and what they make is what this machine makes."""

import subprocess
from pathlib import Path

import pytest

from tests.support.corpus import make_texts, write_jsonl
from tests.support.runs import Workplace

pytestmark = pytest.mark.usefixtures("slurm")

CLEANED = ("data.dedup=near", "data.steps=[{step: length, min_words: 20}, {step: pii, email: mask}]")
JOBS = (
    "prepare.executor=slurm",
    "prepare.slurm={jobs: 2, cores: 2, memory: 1GB, time: '00:10:00'}",
    'prepare.slurm.sbatch_flags=["--job-name=prepare-test"]',
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".html"}


def test_slurm_jobs_write_the_same_data_and_then_end(tmp_path: Path) -> None:
    texts = [*make_texts(200), *make_texts(50), "too short", *(f"{text}me@example.com" for text in make_texts(9, 1))]
    inputs = [write_jsonl(tmp_path / f"{number}.jsonl", texts[number::6]) for number in range(6)]
    given = (f"data.inputs=[{','.join(map(str, inputs))}]", *CLEANED)
    for name, how in (("local", ()), ("slurm", JOBS)):
        done = Workplace(tmp_path, tmp_path / name).prepare(*given, *how)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "slurm") == contents(tmp_path / "local")
    assert list(tmp_path.glob("slurm-*.out")), "jobs have done it"
    left = subprocess.run(
        ["squeue", "-h", "-n", "prepare-test", "-o", "%T"], capture_output=True, text=True, check=True
    )
    assert not left.stdout.strip().replace("COMPLETING", "")
