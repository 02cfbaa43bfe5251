"""A run continues without a bad shard if configured so, and reports the cost; it does not train without any shard."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import Batch, train_batches
from tests.support.corpus import make_texts, write_jsonl
from tests.support.runs import Workplace, train_records, user_error, validation_records

BAD = "train-00001.tar"
STEPS = 6
SHORT = ("evaluation.every_steps=0", f"train.max_steps={STEPS}", "lr_schedule.warmup_steps=2", "run.seed=7")
SKIP = ("data.on_bad_shard=skip", *SHORT)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with several shards."""
    folder = tmp_path_factory.mktemp("sharded")
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(60))
    done = Workplace(folder, folder / "dataset").prepare(f"data.inputs=[{corpus}]", "data.shard_bytes=10000")
    assert done.returncode == 0, done.stderr
    return folder / "dataset"


@pytest.fixture
def place(tmp_path: Path, sharded: Path) -> Workplace:
    return Workplace(tmp_path / "place", shutil.copytree(sharded, tmp_path / "dataset"))


def test_skipped_samples_are_counted_over_ranks_and_stops(place):
    whole = list(itertools.islice(batches_of(place.dataset, skip_bad_shards=False), STEPS))
    (place.dataset / BAD).unlink()
    wanted = list(itertools.islice(batches_of(place.dataset), STEPS))
    counts = list(itertools.accumulate(batch.num_skipped for batch in wanted))
    assert 0 < counts[3] < counts[5] < 8 * STEPS, "some come before the stop, some after it"

    assert BAD in user_error(place.train("skipping", *SHORT))
    done = place.on_ranks(2, "skipping", *SKIP, "train.micro_batch_size=1")
    assert done.returncode == 0, done.stderr
    run = place.run_dir("skipping")
    check_record(run, wanted, counts)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    done = place.train("skipping", *SKIP)
    assert done.returncode == 0 and "step 4, sample 32" in done.stderr, done.stderr
    check_record(run, wanted, counts)

    assert f"{counts[-1]} of {8 * STEPS} samples were skipped" in done.stderr
    log = (run / "logs" / "rank-00000.log").read_text()
    assert log.count(f"{BAD}: missing (No such file or directory); its") == 2, "once in each attempt"
    assert [batch.digest == other.digest for batch, other in zip(wanted, whole, strict=True)] == [
        batch.num_skipped == 0 for batch in wanted
    ]


def test_a_bad_validation_shard_loses_no_step(place):
    shard = next(place.dataset.glob("validation-*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    assert shard.name in user_error(place.train("validated", *SHORT))
    run = place.run_dir("validated")
    records, saved = train_records(run), run / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json"
    before = saved.read_bytes()
    assert list(records) == list(range(1, STEPS + 1)) and not validation_records(run)

    shard.write_bytes(whole)
    done = place.train("validated", *SHORT)
    assert done.returncode == 0 and "finished: step 6" in done.stderr, done.stderr
    assert train_records(run) == records and saved.read_bytes() == before
    assert list(validation_records(run)) == [STEPS] and (run / "sample.txt").exists()
    assert "nothing to do" in place.train("validated", *SHORT).stderr


def test_a_batch_of_only_bad_samples_stops_all_ranks(place):
    for path in sorted(place.dataset.glob("train-*.tar"))[::2]:
        path.unlink()
    batches = batches_of(place.dataset, global_batch_size=2)
    empty = next(step for step, batch in enumerate(batches, 1) if batch.num_skipped == 2)
    assert empty > 1
    small = ("train.global_batch_size=2", "train.micro_batch_size=1", "train.max_steps=100")
    done = place.on_ranks(2, "empty", *SKIP, *small, "checkpoint.every_steps=1")
    said = f"pretrain: error: step {empty}: none of samples {2 * empty - 2} to {2 * empty - 1} counts: all are in bad"
    assert done.returncode != 0 and said in done.stderr, done.stderr
    last = max((place.run_dir("empty") / "checkpoints").iterdir()).name
    assert last == f"step-{empty - 1:08d}" and f"last checkpoint: runs/empty/checkpoints/{last}\n" in done.stderr
    assert max(train_records(place.run_dir("empty"))) == empty - 1


def test_a_run_stops_when_all_its_shards_are_bad(place):
    with place.training("bare", *SKIP, "train.max_steps=100000", "checkpoint.every_steps=0") as run:
        run.wait_for_step(20)
        for path in place.dataset.glob("train-*.tar"):
            path.unlink()
        assert run.end() == 2, run.log
    assert "shards for train cannot be used; the first" in run.log and "Traceback" not in run.log


def batches_of(folder: Path, *, skip_bad_shards: bool = True, global_batch_size: int = 8) -> Iterator[Batch]:
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=skip_bad_shards)
    return train_batches(dataset, seed=7, global_batch_size=global_batch_size, rank=0, size=1, position=0)


def check_record(run, wanted, counts):
    records = train_records(run)
    assert [record["skipped_samples"] for record in records.values()] == counts
    assert [record["batch_hash"] for record in records.values()] == [f"{batch.digest % 2**64:016x}" for batch in wanted]
