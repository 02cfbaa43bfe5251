"""The last lines of `prepare` and `train`."""

import shlex

from pretrain.commands.next_steps import after_prepare, after_train
from pretrain.config.load import load_run_config


def test_train_ends_with_what_is_there_and_what_to_run_next(tmp_path):
    run_dir = tmp_path / "a run"
    (run_dir / "checkpoints" / "step-00000005").mkdir(parents=True)
    for name in ("report.html", "loss.png", "speed.png"):
        (run_dir / name).touch()
    text = after_train(run_dir, "finished")
    for path in ("report.html", "loss.png speed.png", "checkpoints"):
        assert f"{run_dir}/{path}\n" in text
    assert "sample.txt" not in text and "the same command" not in text
    (command,) = [line.partition("  # ")[0] for line in text.splitlines() if "generate" in line]
    assert f"run={run_dir}" in shlex.split(command)
    assert "the same command  # resumes" in after_train(run_dir, "stopped")


def test_a_stop_before_the_first_save_names_no_checkpoint(tmp_path):
    assert "generate" not in after_train(tmp_path, "stopped")


def test_prepare_ends_with_the_command_that_trains_on_it(tmp_path):
    overrides = [f"data.path={tmp_path}/set", "data.name=mine", "prepare.num_workers=2", "data.inputs=[a b.txt]"]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "prepare_report.html").touch()
    text = after_prepare(load_run_config(overrides).data, overrides)
    assert f"{tmp_path}/set/prepare_report.html" in text
    (command,) = [line.partition("  # ")[0] for line in text.splitlines() if "pretrain train" in line]
    assert shlex.split(command) == ["pretrain", "train", overrides[0], "data.name=mine", "data.inputs=[a b.txt]"]


def test_the_command_shows_no_secret(tmp_path):
    word = "data.inputs=['s3://me:secret@bucket/text']"
    assert "secret" not in after_prepare(load_run_config([f"data.path={tmp_path}"]).data, [word])
