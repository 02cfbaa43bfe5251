"""The scripts a new user starts with: which Python, which torch, when an install counts as done, and in what order."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import torch_build
from tests.conftest import NOT_QUICK
from tests.support.fresh_clone import ROOT, borrow_environment, copy_repository, offline_environment

CUDA_BUILD = torch_build.Candidate("2.13.0", ('nvidia-cudnn-cu13==9; platform_system == "Linux"', "filelock"))
CPU_BUILD = torch_build.Candidate("2.13.0+cpu", ("filelock", 'nvidia-extra; extra == "gpu"'))
PYTHON_NAMES = ("python3.13", "python3.12", "python3.11", "python3", "python")


def bash(script: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRETRAIN_")}
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail\n" + script],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The scripts and pyproject.toml, in a folder whose name has a space."""
    folder = tmp_path / "my clone"
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def pythons_on_path(folder: Path, **found: str) -> str:
    """A PATH where each Python name is this Python after the given statement, or does not run."""
    for name in PYTHON_NAMES:
        statement = found.get(name.replace(".", "_"))
        text = "#!/bin/sh\nexit 127\n"
        if statement is not None:
            text = f'#!/bin/sh\nexec {sys.executable} -c "import sys, importlib.util as u\n{statement}\n$2"\n'
        write_program(folder / name, text)
    return f"{folder}:{os.environ['PATH']}"


def version(minor: int) -> str:
    return f"sys.version_info = (3, {minor}, 0, 'final', 0)"


NO_ENSUREPIP = "f = u.find_spec; u.find_spec = lambda n: None if n == 'ensurepip' else f(n)"


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"python3_12": version(12), "python3_11": version(11), "python3": version(11)}, "python3.12"),
        ({"python3": version(13)}, "python3"),
        ({"python3": version(14), "python3_11": version(11)}, "python3.11"),
        ({"python3_12": version(12) + "; " + NO_ENSUREPIP, "python3_11": version(11)}, "python3.11"),
    ],
)
def test_newest_python_that_can_make_an_environment_is_chosen(
    clone: Path, tmp_path: Path, found: dict[str, str], chosen: str
) -> None:
    result = bash("source launch/env.sh; find_python", clone, PATH=pythons_on_path(tmp_path / "bin", **found))
    assert (result.returncode, result.stdout.strip()) == (0, chosen), result.stderr


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, ["needs Python 3.11 to 3.13", "no Python was found"]),
        ({"python3": version(9)}, ["needs Python 3.11 to 3.13", "python3 is 3.9"]),
        ({"python3": version(11) + "; " + NO_ENSUREPIP}, ["no ensurepip", "apt-get install python3.11-venv"]),
    ],
)
def test_without_a_suitable_python_a_message_says_what_to_do(
    clone: Path, tmp_path: Path, found: dict[str, str], words: list[str]
) -> None:
    result = bash("bash launch/env.sh", clone, PATH=pythons_on_path(tmp_path / "bin", **found))
    assert result.returncode == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture
def stamped(clone: Path) -> Path:
    """A clone whose environment counts as installed with `dev`."""
    borrow_environment(clone / ".venv")
    result = bash("source launch/env.sh; write_stamp dev", clone)
    assert result.returncode == 0, result.stderr
    return clone


def is_installed(clone: Path, extras: str) -> bool:
    return bash(f"source launch/env.sh; is_installed '{extras}'", clone).returncode == 0


def test_a_stamp_vouches_for_what_was_installed_and_for_less(stamped: Path) -> None:
    assert is_installed(stamped, "dev")
    assert is_installed(stamped, "")
    bash("source launch/env.sh; write_stamp ''", stamped)
    assert is_installed(stamped, "")
    assert not is_installed(stamped, "dev")


def spoil_pyproject(clone: Path) -> None:
    with (clone / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# one more line\n")


def spoil_stamp(clone: Path) -> None:
    stamp = clone / ".venv" / ".pretrain-installed"
    stamp.write_text(stamp.read_text()[:20])


def spoil_python(clone: Path) -> None:
    (clone / ".venv" / "bin" / "python").unlink()


@pytest.mark.parametrize("spoil", [spoil_pyproject, spoil_stamp, spoil_python])
def test_a_change_since_the_install_makes_it_due_again(stamped: Path, spoil: Callable[[Path], None]) -> None:
    spoil(stamped)
    assert not is_installed(stamped, "")


def test_an_environment_that_was_moved_is_due_again(stamped: Path, tmp_path: Path) -> None:
    moved = stamped.rename(tmp_path / "elsewhere")
    assert not is_installed(moved, "")


def make_venv_without_pip(clone: Path, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    write_program(tmp_path / "quick-python", f'#!/bin/sh\nexec {sys.executable} -m venv --without-pip "$4"\n')
    script = f"source launch/env.sh; find_python() {{ echo '{tmp_path}/quick-python'; }}; make_venv"
    return bash(script, clone, **variables)


def test_a_killed_install_is_started_again(stamped: Path, tmp_path: Path) -> None:
    venv = stamped / ".venv"
    (venv / ".pretrain-unfinished").touch()
    (venv / "half a package").touch()
    result = make_venv_without_pip(stamped, tmp_path)
    assert result.returncode == 0, result.stderr
    assert (venv / "bin" / "python").exists()
    assert (venv / ".pretrain-unfinished").exists()  # until everything is in
    assert not (venv / "half a package").exists()


def test_a_sound_environment_is_updated_in_place(stamped: Path, tmp_path: Path) -> None:
    spoil_pyproject(stamped)
    (stamped / ".venv" / "mine").touch()
    assert make_venv_without_pip(stamped, tmp_path).returncode == 0
    assert (stamped / ".venv" / "mine").exists()


def test_a_folder_of_something_else_is_never_emptied(clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").touch()
    result = make_venv_without_pip(clone, tmp_path, PRETRAIN_VENV=str(folder))
    assert result.returncode == 1
    assert "PRETRAIN_VENV=" in result.stderr and "name a new or empty folder" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]


@pytest.mark.timeout(200)
def test_install_works_from_any_folder_and_only_once(tmp_path: Path) -> None:
    clone = copy_repository(tmp_path / "my clone")
    (clone / "README.md").touch()
    venv = clone / ".venv"
    borrow_environment(venv)
    command = ["bash", str(clone / "launch" / "env.sh")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    first = subprocess.run(command, cwd=elsewhere, env=offline_environment(venv), capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert [line[:5] for line in first.stdout.splitlines() if line.startswith("[")] == [f"[{n}/4]" for n in range(1, 5)]
    found = subprocess.run(
        [venv / "bin" / "python", "-c", "import pretrain; print(pretrain.__file__)"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
    ).stdout
    assert found.strip() == str(clone / "pretrain" / "__init__.py")
    assert (venv / "bin" / "pretrain").exists()

    before = stamps(clone)
    second = subprocess.run(command, cwd=elsewhere, env=offline_environment(venv), capture_output=True, text=True)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert stamps(clone) == before


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_failed_install_says_why_and_is_not_taken_for_done(clone: Path) -> None:
    borrow_environment(clone / ".venv")
    text = (clone / "pyproject.toml").read_text().replace('"rich>=13"', '"rich>=9999"')
    (clone / "pyproject.toml").write_text(text)
    (clone / "README.md").touch()
    shutil.copy(ROOT / "LICENSE", clone)
    result = bash("bash launch/env.sh", clone, **offline_environment(clone / ".venv"))
    assert result.returncode == 1
    assert "rich>=9999" in result.stderr and "pretrain-install.log" in result.stderr
    assert not is_installed(clone, "")


def report_of(candidate: torch_build.Candidate) -> str:
    metadata = {"name": "torch", "version": candidate.version, "requires_dist": list(candidate.requires)}
    return json.dumps({"version": "1", "install": [{"metadata": metadata, "download_info": {}}]})


@pytest.mark.parametrize(("candidate", "needs"), [(CUDA_BUILD, True), (CPU_BUILD, False)])
def test_the_report_of_pip_says_whether_cuda_is_needed(candidate: torch_build.Candidate, needs: bool) -> None:
    read = torch_build.parse_report(report_of(candidate))
    assert read == candidate
    assert read.needs_cuda_libraries is needs


@pytest.mark.parametrize(
    ("index", "platform", "gpu", "candidate", "cpu_build_found", "expected"),
    [
        ("file:///wheels", "linux", False, CUDA_BUILD, True, ["pip --index-url file:///wheels"]),
        (None, "darwin", False, CUDA_BUILD, True, ["pip"]),
        (None, "linux", True, CUDA_BUILD, True, ["pip"]),
        (None, "linux", False, CPU_BUILD, True, ["pip"]),
        (None, "linux", False, None, True, ["pip"]),
        (None, "linux", False, CUDA_BUILD, True, ["cpu build"]),
        (None, "linux", False, CUDA_BUILD, False, ["cpu build", "pip"]),
    ],
)
def test_cuda_libraries_are_fetched_only_if_needed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    index: str | None,
    platform: str,
    gpu: bool,
    candidate: torch_build.Candidate | None,
    cpu_build_found: bool,
    expected: list[str],
) -> None:
    done: list[str] = []

    def pip(*arguments: str) -> int:
        assert arguments[0] == "install" and arguments[-1] == "torch>=2"
        done.append(" ".join(["pip", *arguments[1:-1]]))
        return 0

    def install_cpu_build(requirement: str) -> bool:
        done.append("cpu build")
        return cpu_build_found

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch_build, "pip", pip)
    monkeypatch.setattr(torch_build, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(torch_build, "pip_candidate", lambda requirement: candidate)
    monkeypatch.setattr(torch_build, "install_cpu_build", install_cpu_build)

    assert torch_build.install("torch>=2", {torch_build.INDEX_VARIABLE: index} if index else {}) == 0
    assert done == expected
    said = capsys.readouterr().out
    assert ("several gigabytes" in said) == (expected == ["cpu build", "pip"])
    assert all(line.startswith("torch: ") for line in said.splitlines())


def test_the_torch_requirement_is_read_from_pyproject() -> None:
    requirement = torch_build.torch_requirement(ROOT / "pyproject.toml")
    assert f'"{requirement}"' in (ROOT / "pyproject.toml").read_text()
    assert torch_build.is_installed(requirement)
    assert not torch_build.is_installed("torch>=99")


@pytest.fixture
def rehearsal(clone: Path) -> Path:
    """A clone whose programs only record how they were called; the one that $FAILS names fails."""
    (clone / "launch" / "env.sh").write_text(
        f"root='{clone}'; venv='{clone}/.venv'; ensure_environment() {{ echo \"env $*\" >>'{clone}/calls'; }}\n"
    )
    (clone / "slurm").mkdir()
    (clone / "slurm" / "pretrain.sh").touch()
    for name in ("pretrain", "python", "ruff", "mypy", "lint-imports", "shellcheck"):
        call = f'echo "{name} $*" >>"{clone}/calls"; echo "output of {name}"'
        write_program(clone / ".venv" / "bin" / name, f'#!/bin/sh\n{call}\n[ "$FAILS" != "{name} $1" ]\n')
    return clone


def calls_of(clone: Path) -> list[str]:
    return (clone / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("overrides", "run_dir"),
    [
        ([], "runs/quickstart"),
        (["train.max_steps=20", "data.inputs=[a b.txt]"], "runs/quickstart"),
        (["run.name=other"], "runs/other"),
        (["run.dir=/tmp/x=y"], "/tmp/x=y"),
    ],
)
def test_quickstart_prepares_trains_and_samples_the_same_run(
    rehearsal: Path, overrides: list[str], run_dir: str
) -> None:
    quoted = " ".join(f"'{override}'" for override in overrides)
    result = bash(f"bash launch/quickstart.sh {quoted}", rehearsal, FAILS="")
    assert result.returncode == 0, result.stderr
    environment, prepare, train, generate = calls_of(rehearsal)
    tail = "".join(f" {override}" for override in overrides)
    assert environment == "env "
    assert prepare == "pretrain prepare experiment=quickstart" + tail
    assert train == "pretrain train experiment=quickstart" + tail
    assert generate.startswith(f"pretrain generate run='{run_dir}' ")
    assert f"{run_dir}/report.html" in result.stdout


def test_quickstart_stops_at_the_first_failure(rehearsal: Path) -> None:
    result = bash("bash launch/quickstart.sh", rehearsal, FAILS="pretrain prepare")
    assert result.returncode != 0
    assert calls_of(rehearsal) == ["env ", "pretrain prepare experiment=quickstart"]
    assert "what to try next" not in result.stdout.lower()


SCRIPTS = "slurm/pretrain.sh launch/env.sh launch/quickstart.sh launch/test.sh .ci/run"
STATIC_CHECKS = ["ruff check", "ruff format --check", "lint-imports ", f"shellcheck {SCRIPTS}"]
WORKERS = "python -m pytest -n auto --dist loadfile --no-loadscope-reorder"
PARTS = {
    "bash launch/test.sh": [f"{WORKERS} --short"],
    "bash launch/test.sh --quick": [f"{WORKERS} -q --quick tests/unit"],
    "bash .ci/run": ["python -m pytest tests/slurm", f"{WORKERS} --ignore tests/slurm"],
}


@pytest.mark.parametrize("script", PARTS)
def test_each_part_runs_its_checks(rehearsal: Path, script: str) -> None:
    result = run_checks(rehearsal, script)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "output of python"
    calls = calls_of(rehearsal)
    assert sorted(calls) == sorted(["env dev", "mypy ", *STATIC_CHECKS, *PARTS[script]])
    assert [call for call in calls if call in PARTS[script]] == PARTS[script]


@pytest.mark.parametrize("fails", ["ruff format", "mypy ", "shellcheck slurm/pretrain.sh", "python -m"])
def test_a_failed_check_shows_in_the_exit_code(rehearsal: Path, fails: str) -> None:
    assert run_checks(rehearsal, "bash launch/test.sh", fails).returncode != 0
    assert calls_of(rehearsal)[-1] == PARTS["bash launch/test.sh"][-1], "the others run all the same"


def run_checks(clone: Path, script: str, fails: str = "") -> subprocess.CompletedProcess[str]:
    shutil.copytree(ROOT / ".ci", clone / ".ci")
    (clone / ".ci" / "async_io").write_text("exit 1  # as where nothing can be compiled\n")
    write_program(clone / "bin" / "apt-get", "#!/bin/sh\nexit 1\n")
    return bash(script, clone, FAILS=fails, PATH=f"{clone / 'bin'}:{os.environ['PATH']}")


def test_arguments_of_the_test_script_go_to_pytest_alone(rehearsal: Path) -> None:
    assert bash("bash launch/test.sh -k 'a or b'", rehearsal, FAILS="").returncode == 0
    assert calls_of(rehearsal) == ["env dev", "python -m pytest -k a or b"]


def test_files_that_the_quick_part_leaves_out_exist() -> None:
    assert not [name for name in NOT_QUICK if not (ROOT / "tests" / "unit" / name).exists()]
