import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from pretrain.tracking import provenance
from pretrain.tracking.provenance import describe_environment, write_description


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / "inner").mkdir()
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path.resolve(), git("rev-parse", "HEAD")


def test_the_revision_is_that_of_the_checkout(checkout):
    folder, revision = checkout
    (folder / "untracked").write_text("data")
    assert provenance._git_state(folder) == {"revision": revision, "dirty": False}
    (folder / "code.py").write_text("a = 2\n")
    assert provenance._git_state(folder) == {"revision": revision, "dirty": True}


def test_a_folder_inside_another_checkout_has_no_revision(checkout):
    assert provenance._git_state(checkout[0] / "inner") is None


def test_without_git_there_is_no_revision(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance._git_state(checkout[0]) is None


def test_a_hook_of_another_repository_does_not_mislead(checkout, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("elsewhere")))
    state = provenance._git_state(checkout[0])
    assert state is not None and state["revision"] == checkout[1]


def test_no_environment_variable_is_recorded(monkeypatch):
    secret = "do-not-record-this-0123456789"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("MY_TOKEN", secret)
    described = describe_environment()
    assert described["versions"]["torch"] == metadata.version("torch")
    assert described["versions"]["wandb"] == metadata.version("wandb")
    assert described["device"] and described["cores"] == os.cpu_count()
    assert secret not in json.dumps(described)


def test_the_libraries_of_a_gpu_are_versions_too(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    versions = describe_environment()["versions"]
    assert (versions["cuda"], versions["cudnn"]) == ("13.0", 91002) and "triton" in versions


@pytest.mark.parametrize("used", [True, False])
def test_an_unused_gpu_is_not_the_device(monkeypatch, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert (describe_environment()["device"] == "a GPU") == used


def test_the_description_is_read_back_as_written(tmp_path):
    write_description(tmp_path, {"name": "été", "parameters": {"total": 3}})
    assert json.loads((tmp_path / "description.json").read_text()) == {"name": "été", "parameters": {"total": 3}}
    assert [path.name for path in Path(tmp_path).iterdir()] == ["description.json"]
