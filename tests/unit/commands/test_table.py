"""The command line itself: a module for each command, and a start that imports only what it needs."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pretrain import commands
from pretrain.cli import main
from pretrain.commands.table import COMMANDS, load_command
from tests.support.runs import environment

HEAVY = "import sys; sys.modules.update(dict.fromkeys(('torch', 'hydra', 'pydantic', 'numpy', 'deepspeed'))); "


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_the_module_of_its_name(name: str) -> None:
    (folder,) = commands.__path__
    assert (Path(folder) / f"{name.replace('-', '_')}.py").is_file()
    assert f"pretrain {name}" in load_command(name).HELP.partition("examples:")[2]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = f"{HEAVY} from pretrain.cli import main; main([{option!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "pretrain" in done.stdout, done.stderr


def test_version_names_the_main_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(found) == ["pretrain", "python", "torch", "deepspeed", "megatron-core"]
    assert found["torch"] == version("torch") and found["pretrain"] == version("pretrain")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--versoin"], "`pretrain --help`"),
        (["trian"], "did you mean train?"),
        (["train", "--gpus"], "`pretrain train --help`"),
        (["train", "--optim.lr=3"], "write optim.lr=3"),
        (["data", "inspct"], "did you mean inspect?"),
        (["plan", "--config-dirs=x"], "`pretrain plan --help`"),
    ],
)
def test_a_wrong_command_line_gets_usage_and_a_hint(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    text = capsys.readouterr().err
    assert end.value.code == 2 and text.startswith("usage: pretrain") and f"\n  hint: {hint}" in text


def test_overrides_are_not_among_the_required_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, missing in ((["data", "inspect"], "PATH"), (["verify-resume"], "RUN")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert capsys.readouterr().err.endswith(f"required: {missing}\n")
