"""Batch scripts: the settings, each in its place; no value becomes a line, a flag or a command of its own."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config_text import written
from data_pipeline.errors import UserError
from launch.slurm.batch_script import BatchJob, batch_script, slurm_word
from launch.slurm.batch_shell import LISTEN, run
from launch.slurm.container import command_prefix, container_variables, rank_python, srun_flags
from pretrain.config.cluster import ClusterConfig, ContainerConfig
from pretrain.config.cluster_checks import cluster_problems, memory_bytes, time_seconds
from tests.support.runs import ROOT

COMMAND = ("/venv/bin/python", "-m", "launch.slurm.supervise", "model=tiny", "optim.lr=1e-3")
JOB = BatchJob("pretrain-tiny", "/home/me/runs/tiny/logs/slurm-%j.log", "/home/me", COMMAND)

WHOLE = ClusterConfig(
    partition="gpu,big",
    account="lab",
    qos="high",
    nodes=4,
    gpus_per_node=8,
    cpus_per_task=12,
    memory="0",
    time="2-00",
    signal_seconds=120,
    container=ContainerConfig(kind="pyxis", image="docker://lab/pretrain:1", mounts=("/data:/data:ro",)),
    modules=("cuda/12.4", "nccl"),
    environment={"NCCL_SOCKET_IFNAME": "^lo", "NCCL_IB_TIMEOUT": 22},
    sbatch_flags=("--exclusive", "--comment=two words"),
)
WHOLE_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=pretrain-tiny
#SBATCH --partition=gpu,big
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:8
#SBATCH --mem=0
#SBATCH --time=2-00
#SBATCH --output=/home/me/runs/tiny/logs/slurm-%j.log
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH '--comment=two words'

LISTEN
type module >/dev/null 2>&1 || . /etc/profile
module load cuda/12.4 nccl || { echo "no modules on $(hostname)" >&2; exit 2; }
set -euo pipefail
cd -- /home/me
export NCCL_SOCKET_IFNAME='^lo'
export NCCL_IB_TIMEOUT=22
export PRETRAIN_SRUN_FLAGS='["--container-image=docker://lab/pretrain:1", \
"--container-mounts=/home/me:/home/me,/data:/data:ro", "--container-workdir=/home/me"]'
export PRETRAIN_COMMAND_PREFIX='["env", "NCCL_SOCKET_IFNAME=^lo", "NCCL_IB_TIMEOUT=22"]'
export PRETRAIN_PYTHON=python3
"""


def test_a_script_holds_every_setting() -> None:
    assert not list(cluster_problems(WHOLE))
    listen = LISTEN.rstrip("\n")
    assert batch_script(WHOLE, JOB) == WHOLE_SCRIPT.replace("LISTEN", listen) + run(" ".join(COMMAND))


def test_the_scripts_keep_signals_with_the_same_lines() -> None:
    for name, module in (("pretrain", "supervise"), ("sweep", "array_task")):
        text = (ROOT / "slurm" / f"{name}.sh").read_text()
        first = next(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
        assert f"{LISTEN}set -euo pipefail\n" in text and first in LISTEN, "the signals come first of all"
        assert text.endswith(run(f'"$python" -u -m launch.slurm.{module} "$@"'))


def test_what_is_not_set_is_left_to_the_cluster() -> None:
    script = batch_script(ClusterConfig(), dataclasses.replace(JOB, members=(0, 2)))
    assert script.partition(LISTEN)[0].split("\n")[1:-1] == [
        "#SBATCH --job-name=pretrain-tiny",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --array=0,2",
        "#SBATCH --output=/home/me/runs/tiny/logs/slurm-%j.log",
        "#SBATCH --signal=B:USR1@180",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "",
    ]


HOSTILE = (
    "a b",
    "$(touch x)",
    "`id`",
    "'; exit 1; '",
    '"',
    "a\nexit 1\n#SBATCH --uid=0",
    "\\",
    "é*?",
    "--flag",
    "#",
    "",
)


def test_arguments_and_variables_arrive_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $HOME; "x" #1'
    folder.mkdir()
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    variables = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    job = dataclasses.replace(JOB, folder=str(folder), command=(sys.executable, "-c", code, *HOSTILE))
    container = ContainerConfig(kind="apptainer", image="my image'.sif", mounts=("/a b:/c",))
    cluster = ClusterConfig(environment=variables, container=container)
    script = tmp_path / "job.sh"
    script.write_text(batch_script(cluster, job), encoding="utf-8")
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True, timeout=30)
    words, environment, where = json.loads(done.stdout)
    assert words == list(HOSTILE) and where == str(folder) and list(tmp_path.iterdir()) == [folder, script]
    assert {name: environment[name] for name in variables} == variables
    assert container_variables(cluster, str(folder)).items() <= environment.items()
    # sbatch reads its lines until the first command: none may come from a value.
    before, _, _ = script.read_text().partition("\nset -euo pipefail\n")
    assert "--uid" not in before


def test_modules_load_first_and_their_failure_ends_the_job(tmp_path: Path) -> None:
    profile = tmp_path / "module.sh"
    profile.write_text('module() { [[ $2 == good ]] && export LOADED="$*"; }\n')
    script = tmp_path / "job.sh"
    job = dataclasses.replace(JOB, folder=str(tmp_path), command=("bash", "-c", "echo loaded: $LOADED"))
    for name, code, said in (("good", 0, "loaded: load good\n"), ("bad", 2, "")):
        script.write_text(batch_script(ClusterConfig(modules=(name,)), job))
        environment = {**os.environ, "BASH_ENV": str(profile)}
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (code, said)


TEXT_SETTINGS = ("partition", "account", "qos", "memory", "time", "modules", "sbatch_flags", "image", "mounts")


def with_text(setting: str, text: str) -> ClusterConfig:
    if setting in ("image", "mounts"):
        container = ContainerConfig(kind="pyxis", image="image.sqsh")
        value: object = text if setting == "image" else (text,)
        return ClusterConfig(container=dataclasses.replace(container, **{setting: value}))  # type: ignore[arg-type]
    plural = setting in ("modules", "sbatch_flags")
    return ClusterConfig(**{setting: (text,) if plural else text})  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", TEXT_SETTINGS)
@pytest.mark.parametrize(
    "text",
    [
        "a\n#SBATCH --uid=0",
        "a\r\nb",
        "a\x00",
        "a\u2028b",
        "-x",
        "--",
        "--wrap=id",
        "--nodes=9",
        "--node=9",
        "--ARRAY=1",
    ],
)
def test_text_that_could_be_a_line_or_a_flag_is_refused_by_name(setting: str, text: str) -> None:
    problems = list(cluster_problems(with_text(setting, text)))
    assert [problem.key.rpartition(".")[2] for problem in problems] == [setting]
    assert written(text) in str(problems[0])


@given(st.sampled_from(TEXT_SETTINGS), st.text(st.sampled_from("-ax0=:/, \n\"'\\$;#\u2028"), max_size=8))
def test_whatever_passes_the_checks_is_one_word_of_its_line(setting: str, text: str) -> None:
    cluster = with_text(setting, text)
    if list(cluster_problems(cluster)):
        return
    lines = batch_script(cluster, JOB).splitlines()
    plain = batch_script(with_text(setting, "--x" if setting == "sbatch_flags" else "1"), JOB).splitlines()
    assert len(lines) == len(plain)
    assert sum(line.startswith("#SBATCH --") or line.startswith("#SBATCH '--") for line in lines) == sum(
        line.startswith("#SBATCH") for line in plain
    )


def test_harmless_sbatch_flags_are_accepted() -> None:
    flags = ("--exclusive", "--nice=10", "--constraint=[a|b]&c", "--mail-type=FAIL", "--mem-per-gpu=4G", "--time-min=1")
    assert not list(cluster_problems(ClusterConfig(sbatch_flags=flags)))


def test_a_word_for_slurm_has_no_line_break() -> None:
    with pytest.raises(AssertionError):
        slurm_word("a\nb")


def test_a_container_surrounds_the_command_of_each_rank() -> None:
    pyxis = container_variables(WHOLE, "/my dir")
    assert srun_flags(pyxis)[1:] == [
        "--container-mounts=/my dir:/my dir,/data:/data:ro",
        "--container-workdir=/my dir",
    ]
    assert command_prefix(pyxis)[0] == "env" and rank_python(pyxis) == "python3"
    container = ContainerConfig(kind="apptainer", image="/images/pretrain.sif", mounts=("/data:/data", "/x:/y:ro"))
    apptainer = container_variables(dataclasses.replace(WHOLE, container=container, environment={}), "/w")
    assert srun_flags(apptainer) == []
    assert command_prefix(apptainer) == [
        *("apptainer", "exec", "--nv", "--bind", "/w:/w", "--bind", "/data:/data", "--bind", "/x:/y:ro"),
        *("--pwd", "/w", "/images/pretrain.sif"),
    ]


def test_without_a_container_nothing_surrounds_it() -> None:
    assert container_variables(dataclasses.replace(WHOLE, container=ContainerConfig()), "/w") == {}
    assert (srun_flags({}), command_prefix({}), rank_python({})) == ([], [], sys.executable)


@pytest.mark.parametrize("text", ["--mpi=none", '"word"', "[1]", "{}"])
def test_a_bad_list_of_words_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"PRETRAIN_SRUN_FLAGS=.*must be a JSON list of words"):
        srun_flags({"PRETRAIN_SRUN_FLAGS": text})


def test_memory_is_read_as_slurm_reads_it() -> None:
    assert [memory_bytes(text) for text in ("0", "512", "4G", "1t")] == [None, 512 * 2**20, 4 * 2**30, 2**40]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 600),
        ("10:30", 630),
        ("1:00:05", 3605),
        ("2-00", 172800),
        ("1-02:30", 95400),
        ("1-00:00:01", 86401),
        ("UNLIMITED", None),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: int | None) -> None:
    assert time_seconds(text) == seconds


def test_a_time_limit_leaves_time_to_start_before_the_signal() -> None:
    def problems(time: str, signal_seconds: int) -> list[str]:
        return [str(each) for each in cluster_problems(ClusterConfig(time=time, signal_seconds=signal_seconds))]

    assert problems("5", 180) == problems("2-00", 600) == problems("INFINITE", 600) == []
    (problem,) = problems("4", 180)
    assert problem.startswith(
        "cluster.time='4': is 240 s, and 300 are needed: 120 for a run to start, then cluster.sig"
    )
    assert problem.endswith("write 5 (minutes) or more")
