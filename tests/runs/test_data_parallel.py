"""Two processes under torchrun train the same model on the same batches as one."""

import re
import signal

import pytest

from tests.support.runs import Workplace, train_records, validation_records

LLAMA = ("model=tiny_llama", "model.num_query_groups=1")


@pytest.fixture(scope="module")
def two_then_one(tmp_path_factory, dataset):
    """The training of `plain_run` by two processes until one of them is killed, and then by one."""
    place = Workplace(tmp_path_factory.mktemp("parallel"), dataset)
    with place.training("plain", *LLAMA, "engine.zero_stage=3", num_ranks=2, step_seconds=0.2, torchrun=True) as run:
        run.wait_for_step(9)
        run.wait_for(lambda: (place.run_dir("plain") / "checkpoints" / "step-00000008").exists())
        ranks = run.ranks()
        ranks[1].kill()
        assert run.end(30) != 0
        assert not any(rank.is_running() for rank in ranks.values())
    by_two = max(train_records(place.run_dir("plain")))
    done = place.train("plain", *LLAMA, "engine.zero_stage=1")
    assert done.returncode == 0, done.stderr
    return place.run_dir("plain"), by_two, run.log, done.stderr


def test_two_processes_compute_what_one_does(plain_run, two_then_one):
    mixed, by_two, _, _ = two_then_one
    assert by_two >= 9
    ones, twos = train_records(plain_run), train_records(mixed)
    assert list(ones) == list(twos)
    for step, record in ones.items():
        assert twos[step]["batch_hash"] == record["batch_hash"], f"step {step}"
        for key in ("loss", "grad_norm"):
            assert twos[step][key] == pytest.approx(record[key], rel=1e-5), f"{key} of step {step}"


def test_validation_loss_is_independent_of_the_number_of_ranks(plain_run, two_then_one):
    by_one, by_two = validation_records(plain_run)[8], validation_records(two_then_one[0])[8]
    assert by_two["samples"] == by_one["samples"] == 10
    assert by_two["loss"] == pytest.approx(by_one["loss"], rel=1e-5)


def test_a_killed_rank_is_named(two_then_one):
    log = two_then_one[2]
    assert "Signal 9 (SIGKILL)" in log
    assert "rank      : 1 (local_rank: 1)" in log


def test_a_checkpoint_of_two_ranks_loads_on_one(two_then_one):
    resumed = two_then_one[3]
    assert "resumed from runs/plain/checkpoints/step-00000008: step 8, sample 64" in resumed
    assert "was saved by 2 process(es) as tp1 pp1, now there are 1 process(es) as tp1 pp1: the random states" in resumed


def test_one_rank_verifies_the_steps_of_two_ranks(two_then_one):
    """Bit for bit if there are few of them; else the layout is the reason."""
    _, by_two, _, resumed = two_then_one
    (line,) = [line for line in resumed.splitlines() if "resume verified: " in line]
    assert f"resume verified: {by_two - 8} step" in line
    within = r"equal within 1e-0\d because engine.zero_stage 3 then, 1 now; layout 2 process\(es\) as tp1 pp1 then, 1 "
    assert line.endswith("repeated, exact") or re.search(within, line)


def test_a_mistake_is_reported_once_for_all_ranks(place):
    done = place.torchrun(2, "refused", "train.micro_batch_size=8")
    assert done.returncode != 0
    message = "pretrain: error: train.global_batch_size=8: must be a multiple of train.micro_batch_size=8 times"
    assert done.stderr.count(message) == done.stderr.count("pretrain: error") == 1
    assert message in "\n".join(done.stderr.splitlines()[-3:]), "torchrun's own lines come after it"
    assert not list(place.folder.iterdir())


@pytest.mark.parametrize("degree", ["tp", "cp"])
def test_processes_of_one_replica_count_their_batch_once(place, plain_run, degree):
    short = ("train.max_steps=2", "lr_schedule.warmup_steps=1", "evaluation.every_steps=0")
    done = place.on_ranks(2, "split", *LLAMA, f"parallel.{degree}=2", *short)
    assert done.returncode == 0, done.stderr
    ones, twos = train_records(plain_run), train_records(place.run_dir("split"))
    assert list(twos) == [1, 2]
    assert all(record["batch_hash"] == ones[step]["batch_hash"] for step, record in twos.items())


def test_a_run_on_4_then_2_then_3_ranks_has_the_batches_of_one(place):
    """No sample is lost or seen twice: the hash of each global batch names its samples and their places."""
    settings = (
        "train.global_batch_size=12",
        "train.micro_batch_size=1",
        "train.max_steps=30",
        "evaluation.every_steps=0",
    )
    sizes = []
    for num_ranks in (4, 2):
        with place.training("moved", *settings, num_ranks=num_ranks, step_seconds=0.2) as run:
            run.wait_for_step(max(sizes, default=0) + 3)
            run.process.send_signal(signal.SIGTERM)
            assert run.end() != 0
        sizes.append(max(train_records(place.run_dir("moved"))))
    done = place.on_ranks(3, "moved", *settings)
    assert done.returncode == 0, done.stderr
    assert 3 <= sizes[0] < sizes[1] < 30, "each number of ranks took some of the steps"
    done = place.train("still", *settings)
    assert done.returncode == 0, done.stderr
    moved, still = train_records(place.run_dir("moved")), train_records(place.run_dir("still"))
    assert list(moved) == list(still) == list(range(1, 31))
    assert [record["batch_hash"] for record in moved.values()] == [record["batch_hash"] for record in still.values()]
