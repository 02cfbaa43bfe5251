"""The command itself: help, both ways to call it, the configuration it shows, the secrets it does not print."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.cli import main
from pretrain.commands import prepare as prepare_module
from pretrain.commands.table import COMMANDS
from pretrain.config.load import load_run_config, read_run_config
from pretrain.exit_codes import ExitCode
from tests.support.runs import environment, program_command, train_records, validation_records


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_it_with_an_example(place, name):
    done = place.command(name, "--help")
    assert done.returncode == 0 and not done.stderr
    assert "example" in done.stdout and f"pretrain {name} " in done.stdout.partition("example")[2]


def test_the_shown_configuration_loads_back_the_same(place):
    overrides = ["experiment=quickstart", "optim.lr=1e-3", "model=tiny_llama"]
    shown = place.command("show-config", *overrides)
    path = place.folder / "shown.yaml"
    path.write_text(shown.stdout)
    assert read_run_config(path) == load_run_config(overrides)
    script = Path(sys.executable).with_name("pretrain")
    assert script.exists(), "the package is not installed"
    command = [str(script), "show-config", *overrides]
    installed = subprocess.run(command, cwd=place.folder, env=environment(), capture_output=True, text=True)
    assert installed.stdout == shown.stdout


def test_a_closed_output_pipe_ends_the_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    words = [*program_command(), "show-config"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.NOT_READ, "")


def test_a_pipe_that_breaks_elsewhere_is_a_failure(monkeypatch, caplog, capsys):
    def breaking(config):
        raise BrokenPipeError(errno.EPIPE, "a socket")

    monkeypatch.setattr(prepare_module, "prepare", breaking)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        main(["prepare"])
    assert end.value.code == ExitCode.FAILED and "rank 0 failed" in caplog.text


def test_an_auto_micro_batch_is_saved_as_a_number(place):
    asked = ("train.micro_batch_size=auto", "train.max_steps=1", "lr_schedule.warmup_steps=0")
    assert "micro_batch_size: auto" in place.command("show-config", *asked).stdout
    done = place.train("auto", *asked)
    assert done.returncode == 0, done.stderr
    assert "global batch 8 = 8 micro x 1 accumulated" in done.stderr
    assert read_run_config(place.run_dir("auto") / "config.yaml").train.micro_batch_size == 8


KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(("precision", "zero_stage", "tracking"), [("bf16", 3, "off"), ("fp16", 2, "wandb_offline")])
def test_16_bit_runs_match_fp32_and_store_no_secrets(plain_run, place, precision, zero_stage, tracking):
    done = place.train(
        "short",
        "model=tiny_llama",
        "model.num_query_groups=1",
        f"engine.precision={precision}",
        f"engine.zero_stage={zero_stage}",
        f"tracking={tracking}",
        "tracking.tensorboard=true",
        "tracking.log_every_steps=1",
        "tracking.wandb_project=secret-test",
        "evaluation.every_steps=0",
        "checkpoint.every_steps=0",
        env={"WANDB_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    run = place.run_dir("short")
    applied = {step: record for step, record in train_records(run).items() if record["grad_norm"] < float("inf")}
    assert len(applied) >= 12  # fp16 gives some steps to finding its loss scale
    whole = validation_records(plain_run)[16]["loss"]
    assert validation_records(run)[16]["loss"] == pytest.approx(whole, rel=0.05)
    assert KEY not in done.stdout + done.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert any("wandb" in path.parts for path in files) == (tracking == "wandb_offline")
