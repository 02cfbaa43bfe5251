"""Training on several datasets, as a user starts it."""

import pytest

from tests.support.corpus import make_texts, write_jsonl
from tests.support.runs import Workplace, prepare_dataset, train_records, validation_records

HALF = "data.mixture={dataset: 1, other: 1}"


@pytest.fixture(scope="module")
def mixing(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Two datasets side by side, `dataset` and `other`, with one tokenizer."""
    folder = tmp_path_factory.mktemp("mixture")
    place = Workplace(folder, prepare_dataset(folder))
    texts = write_jsonl(folder / "other.jsonl", make_texts(40, seed=9))
    other = f"data.path={folder / 'other'}"
    done = place.prepare(f"data.inputs=[{texts}]", other, f"tokenizer.path={place.dataset / 'tokenizer.model'}")
    assert done.returncode == 0, done.stderr
    return place


def test_a_resumed_mixture_may_change_later_weights_only(mixing):
    done = mixing.train("mixed", HALF, "train.max_steps=8")
    assert done.returncode == 0, done.stderr
    first = validation_records(mixing.run_dir("mixed"))[8]
    assert first["loss/dataset"] != first["loss/other"]
    assert (
        min(first["loss/dataset"], first["loss/other"])
        < first["loss"]
        < max(first["loss/dataset"], first["loss/other"])
    )
    assert f"dataset {first['loss/dataset']:.4f}, other {first['loss/other']:.4f}" in done.stderr

    longer = "train.max_steps=12"
    refused = mixing.train("mixed", "data.mixture={dataset: 3, other: 1}", longer)
    assert refused.returncode == 2 and "the run was trained on other data" in refused.stderr
    later = "data.mixture_later=[{after_tokens: 2048, weights: {dataset: 1}}]"  # 8 steps of 8 samples of 32 tokens
    done = mixing.train("mixed", HALF, later, longer)
    assert done.returncode == 0, done.stderr

    # The batches after the change are those that a run has which knew of it from the beginning.
    done = mixing.train("known", HALF, later, "train.max_steps=12")
    assert done.returncode == 0, done.stderr
    hashes = [
        {step: record["batch_hash"] for step, record in train_records(mixing.run_dir(name)).items()}
        for name in ("mixed", "known")
    ]
    assert hashes[0] == hashes[1] and len(set(hashes[0].values())) == 12
    text = mixing.generate(f"run={mixing.run_dir('mixed')}", "prompt=ba", "max_new_tokens=4")
    assert text.returncode == 0, text.stderr


def test_a_mixture_shorter_than_the_run_is_refused(mixing):
    done = mixing.train("short", HALF, "data.mixture_max_epochs={dataset: 0.1, other: 0.1}", "train.max_steps=4000")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the mixture ends after" in done.stderr and "the run takes 32,000" in done.stderr
    assert not mixing.run_dir("short").exists()


def test_a_mixture_too_short_for_a_resumed_run_is_refused(mixing):
    caps = "data.mixture_max_epochs={dataset: 0.1, other: 0.1}"
    short = (HALF, caps, "evaluation.every_steps=0", "lr_schedule.warmup_steps=1")
    done = mixing.train("left", *short, "train.max_steps=2", "train.global_batch_size=16")
    assert done.returncode == 0, done.stderr
    other = ("train.global_batch_size=2", "run.accept_changes=[train.global_batch_size]")
    done = mixing.train("left", *short, "train.max_steps=1000", *other)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the mixture ends after" in done.stderr and "the run takes 2,028" in done.stderr
    done = mixing.train("left", *short, "train.max_steps=4", *other)
    assert done.returncode == 0 and "resume verified" in done.stderr, done.stderr


def test_a_missing_dataset_of_the_mixture_is_named(mixing):
    done = mixing.train("missing", "data.mixture={dataset: 1, books: 1}")
    assert done.returncode == 2 and "books: not prepared" in done.stderr
    assert not mixing.run_dir("missing").exists()
