"""`pretrain submit` up to sbatch: what is refused and why, what is printed, written and left alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from launch.slurm.array_task import command_of
from pretrain.cli import main
from pretrain.config.cluster import ClusterConfig
from pretrain.config.load import load_run_config, sweep_members
from pretrain.run import attempts
from pretrain.run.config_history import record_config
from pretrain.run.sweep import last_outcome, read_sweep

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def no_slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


class Said:
    """How `pretrain submit` ended, and what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(["submit", *arguments])
        self.code = exit_.value.code
        self.out, self.err = capsys.readouterr()


def written(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if "data" not in path.parts)


def test_a_dry_run_prints_the_script_and_writes_nothing(place: Path, capsys) -> None:
    said = Said(capsys, "--dry-run", "cluster.nodes=2", "cluster.tasks_per_node=2", "run.name=a b", "cluster.time='10'")
    assert said.code == 0 and written(place) == []
    assert said.out.startswith("#!/bin/bash\n#SBATCH '--job-name=pretrain-a b'\n#SBATCH --nodes=2\n")
    assert f"#SBATCH '--output={place}/runs/a b/logs/slurm-%j.log'\n" in said.out
    assert f"; exec {sys.executable} -u -m launch.slurm.supervise cluster.nodes=2 " in said.out
    assert "'run.name=a b'" in said.out
    assert "legal: tiny on 4 ranks: " in said.err and "2 nodes x 2 ranks, the default partition, 10\n" in said.err


def test_no_submit_keeps_the_script_in_the_run_folder(place: Path, capsys) -> None:
    printed = Said(capsys, "--dry-run", "run.name=one").out
    said = Said(capsys, "--no-submit", "run.name=one")
    assert said.code == 0 and written(place) == ["runs", *(f"runs/one{rest}" for rest in ("", "/job.sh", "/logs"))]
    assert (place / "runs/one/job.sh").read_text() == printed
    assert f"not submitted: sbatch {place}/runs/one/job.sh" in said.err


def test_a_machine_without_slurm_is_reported(capsys) -> None:
    said = Said(capsys, "run.name=one")
    assert said.code == 2 and "`sbatch` not found on PATH" in said.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.nodes=3"], "train.global_batch_size=16: must be a multiple of"),
        (["cluster.nodes=2", "parallel.tp=3"], "nearest legal layouts on 2 ranks"),
        (["cluster.nodes=0"], "cluster.nodes=0: must be greater than 0"),
        (["cluster.signal_seconds=0"], "cluster.signal_seconds=0: must be from 1 to 65535"),
        (["cluster.gpus_per_node=2", "cluster.tasks_per_node=4"], "each rank needs a GPU of its own"),
        (["cluster.partition='a b'"], "cluster.partition=a b: must be a name"),
        (["cluster.time=soon"], "cluster.time=soon: must be minutes"),
        (["cluster.time='4'"], "cluster.time='4': is 240 s, and 300 are needed"),
        (["cluster.container.image=x"], "cluster.container.kind=none: there is an image"),
        (["cluster.container.kind=pyxis"], "cluster.container.image=null: kind=pyxis needs one"),
        (['cluster.sbatch_flags=["--nodes=4"]'], "would contradict what was checked\n  hint: set cluster.nodes"),
        (["+cluster.environment.A-B=x"], "A-B: is not a valid variable name"),
        (["+cluster.environment.A=true"], "cluster.environment.A"),
        (["cluster.node=4"], "cluster.node=4: unknown key\n  hint: did you mean cluster.nodes?"),
        (["engine.device=cuda"], "engine.device=cuda: cluster.gpus_per_node=0 asks for no GPU"),
        (["data.name=other"], "data.path=data/other: not prepared"),
        (["run.name='a\\b'"], "run.name=a\\b: must be one line of printable characters without \\"),
        (["model=tiny,tiny_llama"], "add -m to `pretrain train` or `pretrain submit`"),
        (["--name", "x"], "--name x names a sweep"),
        (["--rerun", "x", "-m"], "give one of them"),
        (["--rerun", "x"], "x/sweep.json: No such file or directory\n  hint: give the folder that"),
        (["-m"], "nothing is swept"),
        (["-m", "optim.lr=1,2", "optim.lr=3"], "optim.lr: is given more than once"),
        (["-m", "optim.lr=interval(0,1)"], "cannot be counted out"),
        (["-m", "--name", "a/b", "optim.lr=1,2"], "--name a/b: must be letters"),
        (["-m", "optim.lr=1,2", "cluster.nodes=1,2"], "`cluster` must be the same for all"),
        (["-m", "optim.lr=1,2", "run.name=x"], "run.dir=runs/x: more than one member would use it"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(place: Path, overrides: list[str], words: str, capsys) -> None:
    said = Said(capsys, *overrides)
    assert said.code == 2 and words in said.err and not said.out
    assert "Traceback" not in said.err and written(place) == []


def test_too_little_memory_is_refused_before_submission(capsys) -> None:
    large = ("--dry-run", "model=gpt3_1.3b", "data.name=files", "cluster=gpu_8x80gb", "train.global_batch_size=64")
    said = Said(capsys, *large, "cluster.gpu_memory_gib=16")
    assert said.code == 2 and "cluster.gpu_memory_gib=16.0: a rank needs " in said.err
    assert Said(capsys, *large, "cluster.gpu_memory_gib=null").code == 0
    assert Said(capsys, *large, "cluster.nodes=2", "engine=zero3_bf16", "train.micro_batch_size=1").code == 0
    said = Said(capsys, *large, "cluster=default", "cluster.tasks_per_node=8", "cluster.memory=8G")
    assert said.code == 2 and "cluster.memory=8G: 8 ranks on a node need " in said.err
    # Stages one and two on one node, three and four on the other: what the fuller one needs counts.
    small = ("--dry-run", "parallel.pp=4", "model.num_layers=4", "cluster.nodes=2", "cluster.tasks_per_node=2")
    assert Said(capsys, *small, "cluster.memory=2G").code == 0
    assert "2 ranks on a node need " in Said(capsys, *small, "cluster.memory=20M").err


def test_data_may_be_made_by_a_job_before(capsys) -> None:
    waits = 'cluster.sbatch_flags=["--dependency=afterok:1"]'
    assert Said(capsys, "--dry-run", "data.name=other", waits).code == 0


def test_a_resume_that_would_be_refused_is_not_submitted(place: Path, capsys) -> None:
    (place / "runs/one").mkdir(parents=True)
    record_config(place / "runs/one", load_run_config(["run.name=one"]), 0)
    said = Said(capsys, "--dry-run", "run.name=one", "optim.lr=1")
    assert said.code == 2 and "optim.lr: 0.0003 there, 1.0 now" in said.err
    assert Said(capsys, "--dry-run", "run.name=one", "cluster.nodes=2", "cluster.partition=other").code == 0


def test_a_grid_is_every_combination_in_hydras_own_words() -> None:
    grid = sweep_members(["model=tiny,tiny_llama", "a=x", "optim.lr=range(1,3)", "run.name=choice('a b',c)"])
    assert len(grid) == 8 and grid[0] == ("model=tiny", "a=x", "optim.lr=1", "run.name=a\\ b")
    assert grid[1][3] == "run.name=c" and grid[-1] == ("model=tiny_llama", "a=x", "optim.lr=2", "run.name=c")
    # A list is a value, and so is text in quotes.
    assert sweep_members(["data.inputs=[a,b]", "x='a,b',c"]) == [
        ("data.inputs=[a,b]", "x='a,b'"),
        ("data.inputs=[a,b]", "x=c"),
    ]


def test_members_of_a_sweep_have_their_own_runs_and_one_group(place: Path, capsys) -> None:
    said = Said(capsys, "-m", "--no-submit", "--name", "sizes", "model=tiny,tiny_llama", "optim.lr=1e-3,2e-3")
    assert said.code == 0
    sweep = read_sweep(place / "sweeps/sizes")
    assert [member.run_dir for member in sweep.members] == [f"runs/sizes-{index}" for index in range(4)]
    assert sweep.given == ("model=tiny,tiny_llama", "optim.lr=1e-3,2e-3") and sweep.jobs == ()
    configs = [load_run_config(member.overrides) for member in sweep.members]
    assert [(config.model.name, config.optim.lr) for config in configs] == [
        *(("tiny", 1e-3), ("tiny", 2e-3), ("tiny_llama", 1e-3), ("tiny_llama", 2e-3)),
    ]
    assert {config.tracking.wandb_group for config in configs} == {"sizes"}
    script = (place / "sweeps/sizes/job.sh").read_text()
    assert "#SBATCH --array=0,1,2,3\n" in script and "/sweeps/sizes/logs/slurm-%A_%a.log\n" in script
    assert f" -m launch.slurm.array_task {place}/sweeps/sizes) &\n" in script
    said = Said(capsys, "-m", "--no-submit", "--name", "sizes", "optim.lr=1,2")
    assert said.code == 2 and "--name sizes: sweeps/sizes already exists" in said.err
    Said(capsys, "-m", "--no-submit", "optim.lr=1,2")
    assert "sweep-1-0" in (place / "sweeps/sweep-1/sweep.json").read_text()


def test_all_members_are_checked_before_anything_is_written(place: Path, capsys) -> None:
    said = Said(capsys, "-m", "optim.lr=1,-1", "model.num_heads=3,4")
    assert said.code == 2 and written(place) == []
    assert "member 0 (run.name=sweep-1-0 tracking.wandb_group=sweep-1 optim.lr=1 model.num_heads=3)" in said.err
    assert "member 3 (" in said.err and "member 1 (" not in said.err and "optim.lr=-1.0: must be greater" in said.err
    said = Said(capsys, "-m", "optim.lr=1,2", "train.max_steps=-5")
    assert "member 0, 1 (" in said.err and said.err.count("must be greater than 0") == 1


def test_a_task_is_the_member_of_its_index(place: Path, capsys) -> None:
    Said(capsys, "-m", "--no-submit", "--name", "s", "optim.lr=1,2", "+cluster.environment.A='x y'")
    command = command_of(["sweeps/s"], {"SLURM_ARRAY_TASK_ID": "1"})
    ours = ("run.name=s-1", "tracking.wandb_group=s")
    assert command[1:] == ["-u", "-m", "launch.slurm.supervise", *ours, "optim.lr=2", "+cluster.environment.A='x y'"]
    for environment in ({}, {"SLURM_ARRAY_TASK_ID": "2"}):
        with pytest.raises(UserError, match=r"has members 0 to 1; submit with --array=0-1"):
            command_of(["sweeps/s"], environment)
    with pytest.raises(UserError, match="the folder of a sweep"):
        command_of([], {"SLURM_ARRAY_TASK_ID": "1"})


def end_attempts(run_dir: Path, *outcomes: attempts.Outcome) -> None:
    for number, outcome in enumerate(outcomes, 1):
        attempts.ended(run_dir, number, outcome=outcome, exit_code=None, cause="", step=1)


def test_only_what_is_not_finished_is_submitted_again(place: Path, capsys) -> None:
    Said(capsys, "-m", "--no-submit", "--name", "s", "optim.lr=1,2,3")
    for index, outcomes in ((0, ("failed", "finished")), (2, ("finished", "lost"))):
        end_attempts(place / f"runs/s-{index}", *outcomes)
        with (place / f"runs/s-{index}/attempts.jsonl").open("a") as file:
            file.write('{"torn')
    said = Said(capsys, "--no-submit", "--rerun", "sweeps/s", "optim.lr=7")
    assert said.code == 0
    assert "member 0, runs/s-0: finished\nmember 1, runs/s-1: did not begin: again\n" in said.err
    assert "member 2, runs/s-2: lost: again\n" in said.err
    assert "#SBATCH --array=1,2\n" in (place / "sweeps/s/job.sh").read_text()
    overrides = [member.overrides for member in read_sweep(place / "sweeps/s").members]
    assert [words[2:] for words in overrides] == [
        *(("optim.lr=1",), ("optim.lr=2", "optim.lr=7"), ("optim.lr=3", "optim.lr=7")),
    ]
    for index in (1, 2):
        end_attempts(place / f"runs/s-{index}", "lost", "lost", "finished")
    assert "nothing to submit" in Said(capsys, "--rerun", "sweeps/s").err


def test_a_run_without_attempts_has_no_outcome(tmp_path: Path) -> None:
    assert last_outcome(tmp_path) is None


def test_the_record_and_the_default_file_agree() -> None:
    assert load_run_config([]).cluster == ClusterConfig()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "cluster").glob("*.yaml")))
def test_every_cluster_of_the_examples_is_legal(name: str, capsys) -> None:
    assert Said(capsys, "--dry-run", f"cluster={name}", "train.global_batch_size=32").code == 0


def test_submitting_needs_no_torch(place: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pretrain.cli import main; "
        "main(['submit', '-m', '--no-submit', 'optim.lr=1,2', 'cluster.nodes=2'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (place / "sweeps/sweep-1/job.sh").exists()


def test_the_scripts_pass_shellcheck(monkeypatch: pytest.MonkeyPatch, place: Path, capsys) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert shellcheck is not None, "the dev extra brings it"
    Said(capsys, "-m", "--no-submit", "--name", "s", "optim.lr=1,2", "cluster.modules=[cuda]", "run.seed=7")
    scripts = [ROOT / "slurm" / "sweep.sh", place / "sweeps/s/job.sh"]
    # 1091: what the login profile holds is the site's.
    done = subprocess.run([shellcheck, "-e", "1091", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
