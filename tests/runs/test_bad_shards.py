"""A run goes on without a bad shard, if told so, and says what that cost."""

import itertools
import shutil

from data_pipeline.loader import train_batches
from data_pipeline.shards.reader import PackedDataset
from tests.support.corpus import make_texts, write_jsonl
from tests.support.runs import Workplace, train_records, user_error

BAD = "train-00001.tar"
STEPS = 6


def test_a_run_skips_a_bad_shard_and_counts_its_samples_over_ranks_and_stops(tmp_path):
    place = Workplace(tmp_path / "place", tmp_path / "dataset")
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts(60))
    assert place.prepare(f"data.inputs=[{corpus}]", "data.shard_bytes=10000").returncode == 0
    whole = list(itertools.islice(batches_of(place.dataset, skip_bad_shards=False), STEPS))
    (place.dataset / BAD).unlink()
    wanted = list(itertools.islice(batches_of(place.dataset, skip_bad_shards=True), STEPS))
    counts = list(itertools.accumulate(batch.num_skipped for batch in wanted))
    assert 0 < counts[3] < counts[5] < 8 * STEPS, "some come before the stop, some after it"

    short = ("evaluation.every_steps=0", f"train.max_steps={STEPS}", "lr_schedule.warmup_steps=2", "run.seed=7")
    assert BAD in user_error(place.train("skipping", *short))
    skip = ("data.on_bad_shard=skip", *short)
    done = place.torchrun(2, "skipping", *skip, "train.micro_batch_size=1")
    assert done.returncode == 0, done.stderr
    run = place.run_dir("skipping")
    check_record(run, wanted, counts)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    done = place.train("skipping", *skip)
    assert done.returncode == 0 and "step 4, sample 32" in done.stderr, done.stderr
    check_record(run, wanted, counts)

    assert f"{counts[-1]} of {8 * STEPS} samples did not count" in done.stderr
    log = (run / "logs" / "rank-00000.log").read_text()
    assert log.count(f"{BAD}: missing (No such file or directory); its") == 2, "once in each attempt"
    assert [batch.digest == other.digest for batch, other in zip(wanted, whole, strict=True)] == [
        batch.num_skipped == 0 for batch in wanted
    ]


def batches_of(folder, *, skip_bad_shards):
    dataset = PackedDataset.open(folder, "train", skip_bad_shards=skip_bad_shards)
    return train_batches(dataset, seed=7, global_batch_size=8, rank=0, size=1, position=0)


def check_record(run, wanted, counts):
    records = train_records(run)
    assert [record["skipped_samples"] for record in records.values()] == counts
    assert [record["batch_hash"] for record in records.values()] == [f"{batch.digest % 2**64:016x}" for batch in wanted]
