"""A dataset can be read from a command that prints its files, if the configuration allows it, without a shell."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.remote.folder import RemoteFolder
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.dataset_locations import dataset_folders, open_folder
from tests.support.corpus import data_config
from tests.unit.data_pipeline.remote.reading import everything


def pipe(folder: Path, command: str = "cat") -> str:
    return f"pipe:{command} '{folder}/set/'{{file}}"


def test_commands_are_refused_unless_allowed(folder, cache, tmp_path):
    with pytest.raises(
        DataError, match=r"data.path=pipe:touch .*: is a command, and .*\n  hint: set data.cache.allow_pipe=true"
    ):
        open_folder(f"pipe:touch {tmp_path}/ran {{file}}", cache)
    assert not (tmp_path / "ran").exists()


def test_a_command_is_read_without_a_shell(folder, cache, tmp_path):
    allowed = dataclasses.replace(cache, allow_pipe=True)
    dataset = PackedDataset.open(RemoteFolder(pipe(folder), allowed), "train")
    assert np.array_equal(everything(dataset), everything(PackedDataset.open(folder / "set", "train")))
    shell = f"pipe:cat {{file}} ; touch {tmp_path}/ran"
    with pytest.raises(DataError, match=r"exit code 1 \(cat: .*\), tried 3 times"):
        PackedDataset.open(RemoteFolder(shell, allowed), "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pipe:cat set", r"must contain \{file\} where the file name goes"),
        ("pipe:no-such-command {file}", r"manifest.json: cannot be read: the command cannot be started"),
        ("pipe:sleep 5{file}", r"the command ended with exit code 1 \(.*\), tried 2 times"),
        ("pipe:sh -c 'sleep 5' {file}", r"the command printed nothing in time, tried 2 times"),
        ("pipe:'cat {file}", r"the command cannot be started \(No closing quotation\)"),
    ],
)
def test_commands_that_fail_are_named(cache, command, message):
    allowed = dataclasses.replace(
        cache, allow_pipe=True, timeout_seconds=0.2 if "printed" in message else 5.0, retries=1
    )
    with pytest.raises(DataError, match=message):
        PackedDataset.open(RemoteFolder(command, allowed), "train")


def test_partial_output_of_a_failing_command_is_rejected(folder, cache):
    allowed = dataclasses.replace(cache, allow_pipe=True)
    script = f"pipe:sh -c 'head -c 300 {folder}/set/$0; exit 3' {{file}}"
    with pytest.raises(DataError, match=r"the command ended with exit code 3, tried 3 times"):
        PackedDataset.open(RemoteFolder(script, allowed), "train")


def test_a_mixture_cannot_be_read_from_a_command(cache):
    data = data_config(Path("unused"), [], mixture={"a": 1.0}, cache=cache)
    data = dataclasses.replace(data, path="pipe:cat {file}")
    with pytest.raises(DataError, match="a mixture needs a folder or a URL, not a command"):
        dataset_folders(data)
