"""Completion on the command line: commands, options, keys, groups, values; the scripts run in their shells."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.cli import main
from pretrain.commands.candidates import candidates, split_line
from pretrain.commands.completion import BASH, ZSH
from pretrain.commands.table import COMMANDS
from tests.support.runs import environment


def texts(line: str) -> list[str]:
    return [each.text for each in candidates(split_line(line))]


def test_every_command_completes_with_its_summary() -> None:
    assert {each.text: each.meaning for each in candidates(split_line("pretrain "))} == COMMANDS
    assert texts("pretrain verify") == ["verify-resume"] and texts("pretrain --v") == ["--version"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pretrain data ver", ["verify"]),
        ("pretrain train --che", ["--check"]),
        ("pretrain train --check mod", ["model=", "model."]),
        ("pretrain train train.max_m", ["train.max_minutes="]),
        (
            "pretrain train optim.lr=1 engine.precision=",
            [f"engine.precision={name}" for name in ("fp32", "bf16", "fp16")],
        ),
        ("pretrain train run.restart=t", ["run.restart=true"]),
        ("pretrain train train.micro_batch_size=", ["train.micro_batch_size=auto"]),
        ("pretrain train model=tiny", ["model=tiny", "model=tiny_experts", "model=tiny_llama"]),
        ("pretrain data inspect d --split ", ["train", "validation"]),
        ("pretrain data verify s3://x data.", ["data.cache."]),
        ("pretrain generate device=c", ["device=cpu", "device=cuda"]),
        ("pretrain explain optim.l", ["optim.lr"]),
        ("pretrain verify-resume runs/x m", []),
        ("pretrain verify-resume runs/x train.", ["train.micro_batch_size="]),
        ("pretrain completion z", ["zsh"]),
        ("pretrain nonsense ", []),
        ("pretrain train --name ", []),
        ("pretrain train 'optim.", ["optim.name="]),
    ],
)
def test_the_last_word_is_completed(line: str, expected: list[str]) -> None:
    assert texts(line)[: max(1, len(expected))] == expected


def test_files_of_own_folders_complete(tmp_path: Path) -> None:
    for name in ("model/mine.yaml", "recipes/small.yaml"):
        (tmp_path / "my conf" / name).parent.mkdir(parents=True)
        (tmp_path / "my conf" / name).write_text("# Mine.\n")
    before = f"pretrain train --config-dir '{tmp_path}/my conf'"
    assert texts(f"{before} model=m") == ["model=mine", "model=mixtral_8x7b", "model=mt_nlg_530b"]
    assert texts(f"{before} +") == ["+recipes="] and texts(f"{before} +recipes=") == ["+recipes=small"]


def test_completion_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, hydra=None, megatron=None); from pretrain.cli import main; "
        "main(['completion', 'bash', 'pretrain plan model=tiny_l'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.startswith("tiny_llama\t")


@pytest.mark.parametrize(("line", "expected"), [("pretrain train model=tiny_l", "tiny_llama"), ("pretrain pl", "plan")])
def test_bash_gets_the_part_after_the_equals_sign(line: str, expected: str) -> None:
    script = f"""{BASH}
    pretrain() {{ {sys.executable} -m pretrain "$@"; }}
    compopt() {{ :; }}
    COMP_WORDS=(pretrain) COMP_LINE='{line}' COMP_POINT={len(line)}
    _pretrain
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_gets_whole_words() -> None:
    script = f"""
    compdef() {{ :; }}
    compadd() {{ print -l -- "$@" $words_done; }}
    {ZSH}
    pretrain() {{ {sys.executable} -m pretrain "$@"; }}
    words=(pretrain train model=tiny_l) CURRENT=3 PREFIX=model=tiny_l
    _pretrain
    """
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "model=tiny_llama", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["completion", shell])
    assert end.value.code == 0 and f"completion {shell}" in capsys.readouterr().out
