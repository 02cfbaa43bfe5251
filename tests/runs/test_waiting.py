"""A run that waits for a shard still hears that it is to stop, on all ranks, and loses no step."""

import os
import signal
import time

import pytest

from tests.support.corpus import make_texts, write_jsonl
from tests.support.http_server import hangs, serving
from tests.support.parts import full_except
from tests.support.runs import Workplace, train_records

SILENT = "train-00001.tar"


@pytest.mark.parametrize("num_ranks", full_except([0, 2], [0]))
def test_a_run_that_waits_for_a_server_saves_and_stops(tmp_path, num_ranks):
    place = Workplace(tmp_path / "place", tmp_path / "dataset")
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts(60))
    assert place.prepare(f"data.inputs=[{corpus}]", "data.shard_bytes=10000").returncode == 0
    with serving(tmp_path) as served:
        served.lasting[SILENT] = hangs
        patient = ("data.cache.timeout_seconds=2", "data.cache.retries=1000", f"data.cache.dir={tmp_path / 'cache'}")
        small = ("train.global_batch_size=2", "train.micro_batch_size=1", "run.seed=7", "checkpoint.every_steps=0")
        overrides = (f"data.path={served.url}/dataset", *patient, *small, "evaluation.every_steps=0")
        with place.training("waiting", *overrides, "train.max_steps=100000", num_ranks=num_ranks) as run:
            run.wait_for_step(1)
            steps, before = max(train_records(run.run_dir)), 0
            while steps > before:  # until it waits
                time.sleep(3)
                before, steps = steps, max(train_records(run.run_dir))
            for process in run.ranks().values() if num_ranks else [run.process]:
                os.kill(process.pid, signal.SIGTERM)
            codes = run.end(30)
            assert codes != 0 if num_ranks else codes == 75, run.log
            log = run.log
    steps += 1  # it waits for the batch after the one that it has, whose step it still takes
    assert f"stopped after step {steps} of 100000, saved" in log
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
