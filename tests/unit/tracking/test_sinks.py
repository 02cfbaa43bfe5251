"""A run recorded by all sinks in two starts, each in a process of its own, and the files in its folder afterwards."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from pretrain.config.errors import RunError
from pretrain.config.load import load_run_config, read_run_config, to_yaml
from pretrain.tracking import sinks as sinks_module
from pretrain.tracking.metrics_file import read_metrics
from pretrain.tracking.sinks import Spare, build_sinks
from pretrain.tracking.tensorboard_sink import TensorBoardSink

SOURCE = Path(__file__).resolve().parents[3]
SECRET = "f" * 20 + "do0not0tell0anybody0" + "f" * 20

RECORD = """
import logging, sys
from pathlib import Path
from pretrain.config.load import load_run_config
from pretrain.tracking.provenance import write_description
from pretrain.tracking.sinks import build_sinks

logging.basicConfig(level=logging.INFO, format="%(message)s")
run_dir, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = load_run_config(sys.argv[4:])
description = {"parameters": {"total": 1234567}}
run_dir.mkdir(exist_ok=True)
write_description(run_dir, description)
sinks = build_sinks(config, run_dir, first, 100, description)
for step in range(first + 1, last + 1):
    for sink in sinks:
        sink.log("train", step, {"loss": 10.0 / step, "lr": 1e-3, "batch_hash": "00ff00ff00ff00ff"})
for sink in sinks:
    sink.log("validation", last, {"loss": 20.0 / last, "perplexity": 5.0})
for sink in sinks:
    sink.close("stopped")
"""

WITH_SECRETS = (
    f"data.path='https://me:{SECRET}@host/set?signature={SECRET}'",
    f"data.inputs=['s3://me:{SECRET}@bucket/text']",
    f"+cluster.environment.WANDB_API_KEY={SECRET}",
    "+cluster.environment.NCCL_DEBUG=WARN",
)


def run_script(script, run_dir, *arguments, **environment):
    """The output of a process that has a key in its environment."""
    command = [sys.executable, "-c", script, str(run_dir), *map(str, arguments)]
    variables = os.environ | {"WANDB_API_KEY": SECRET, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=run_dir.parent, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that logged up to step 8 and was resumed from step 5; what the two starts printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "a run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(load_run_config(WITH_SECRETS)))
    printed = [run_script(RECORD, run_dir, *steps, *WITH_SECRETS) for steps in ((0, 8), (5, 12))]
    return run_dir, printed


def wandb_records(path):
    """The records of a .wandb file: a LevelDB log, 32 KiB blocks of fragments, behind a header of 7 bytes."""
    content, position, whole = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        size, part = struct.unpack_from("<HB", content, position + 4)
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if part in (1, 4):  # full, or the last of several
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_metrics_hold_each_step_once(run):
    steps = [record["step"] for record in read_metrics(run[0]) if record["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert len((run[0] / "metrics.jsonl").read_bytes().splitlines()) == 12 + 1


def test_a_resumed_run_continues_the_same_wandb_run(run):
    run_id = (run[0] / "wandb_run_id").read_text().strip()
    starts = sorted((run[0] / "wandb").glob("offline-run-*"))
    assert len(starts) == 2 and all(start.name.endswith(f"-{run_id}") for start in starts)
    logged = []
    for start in starts:
        records = list(wandb_records(start / f"run-{run_id}.wandb"))
        (described,) = {record.run.run_id for record in records if record.HasField("run")}
        assert described == run_id
        rows = [
            {
                item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            for record in records
            if record.HasField("history")
        ]
        logged.append([(row["_step"], row["train/loss"]) for row in rows])
        assert rows[-1]["validation/perplexity"] == 5.0
    assert logged == [[(step, 10.0 / step) for step in steps] for steps in (range(1, 9), range(6, 13))]


def test_wandb_gets_the_configuration_and_the_description(run):
    path = next((run[0] / "wandb").glob("offline-run-*/run-*.wandb"))
    updates = [
        update for record in wandb_records(path) if record.HasField("run") for update in record.run.config.update
    ]
    config = {update.key: json.loads(update.value_json) for update in updates}
    assert config["model"]["name"] == "tiny" and config["optim"]["lr"] == 3e-4
    assert config["description"]["parameters"] == {"total": 1234567}


def test_the_run_ends_with_the_command_that_sends_it(run):
    (command,) = re.findall(r"wandb sync (.*)", run[1][1])
    listed = subprocess.run(f"printf '%s\\n' {command}", shell=True, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 2
    assert all(Path(line).is_dir() for line in listed.stdout.splitlines())


def test_wandb_prints_nothing_of_its_own(run):
    for printed in run[1]:
        assert {line.split()[0] for line in printed.splitlines()} == {"step", "validation", "To"}


def test_tensorboard_shows_each_step_once(run):
    events = EventAccumulator(str(run[0] / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/lr", "validation/loss", "validation/perplexity"]
    loss = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert loss == [(step, pytest.approx(10.0 / step)) for step in range(1, 13)]


def test_the_report_is_there(run):
    assert "1.23M" in (run[0] / "report.html").read_text()
    assert (run[0] / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_file_of_the_run_holds_a_secret(run):
    files = [path for path in run[0].rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    kept = read_run_config(run[0] / "config.yaml")
    assert (kept.data.path, kept.data.inputs) == ("https://host/set", ("s3://bucket/text",))
    assert kept.cluster.environment == {"WANDB_API_KEY": "(not stored)", "NCCL_DEBUG": "WARN"}


OFFLINE_SCRIPT = """
import logging, sys
from pathlib import Path
from pretrain.config.load import load_run_config
from pretrain.tracking import wandb_sink

wandb_sink._QUIET_SETTINGS["init_timeout"] = 1
logging.basicConfig(level=logging.INFO)
sink = wandb_sink.WandbSink(load_run_config(["tracking=wandb_online"]), Path(sys.argv[1]), {})
sink.log("train", 1, {"loss": 1.0})
sink.close("finished")
"""


def test_online_without_a_network_records_offline(tmp_path):
    printed = run_script(OFFLINE_SCRIPT, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "wandb cannot be reached and records offline" in printed
    assert "wandb sync" in printed
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_the_service_of_another_process_does_not_keep_the_id(tmp_path):
    (tmp_path / "child").mkdir()
    start = "import sys, wandb; run = wandb.init(mode='offline', dir=sys.argv[1]); "
    command = f"[sys.executable, '-c', {OFFLINE_SCRIPT!r}, sys.argv[1] + '/child']"
    child = f"import subprocess; done = subprocess.run({command})"
    run_script(
        f"{start}{child}; run.finish(); sys.exit(done.returncode)", tmp_path, WANDB_BASE_URL="http://127.0.0.1:9"
    )
    assert len(list((tmp_path / "child" / "wandb").glob("offline-run-*"))) == 1


def test_wandb_online_without_a_key_is_refused_early(tmp_path):
    script = (
        "import sys; from pretrain.config.load import load_run_config; "
        "from pretrain.tracking.wandb_sink import check_wandb_login; "
        "check_wandb_login(load_run_config(['tracking=wandb_online']).tracking)"
    )
    hidden = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "RunError: tracking.wandb=online: there is no API key" in done.stderr
    assert "tracking=wandb_offline" in done.stderr
    assert not (tmp_path / "runs").exists()


class Failing:
    """A sink whose disk or network is gone."""

    def __init__(self):
        self.calls = 0

    def log(self, kind, step, values):
        self.calls += 1
        raise ConnectionError("the network is gone")

    def close(self, outcome):
        self.calls += 1


def test_a_sink_that_fails_is_disabled_with_one_warning(caplog):
    failing = Failing()
    sink = Spare("wandb", failing)
    for step in range(3):
        sink.log("train", step, {"loss": 1.0})
    sink.close("finished")
    assert failing.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "wandb failed and is disabled for the rest of the run: ConnectionError: the network is gone"
    ]


def test_a_sink_that_cannot_start_does_not_keep_the_others(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file where a folder must be")
    sinks = build_sinks(load_run_config(["tracking=off"]), tmp_path, 0, 10, {})
    for sink in sinks:
        sink.log("train", 1, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1
    assert "TensorBoard failed and is disabled for the rest of the run" in caplog.text


def test_a_mistake_of_the_user_is_not_swallowed(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise RunError("no key")

    monkeypatch.setattr(sinks_module, "WandbSink", refuse)
    with pytest.raises(RunError, match="no key"):
        build_sinks(load_run_config([]), tmp_path, 0, 10, {})


def test_tensorboard_without_a_resume_hides_an_earlier_start(tmp_path):
    for last in (5, 3):
        sink = TensorBoardSink(tmp_path, resume_step=0)
        for step in range(last):
            sink.log("train", step, {"loss": float(last)})
        sink.close("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 3.0), (1, 3.0), (2, 3.0)]
