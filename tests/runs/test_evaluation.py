"""Validation reads the whole split once, and its result does not depend on the layout."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.evaluation.perplexity import evaluate
from tests.support.ranks import run_ranks
from tests.support.runs import SHAPE, TRAINING, validation_records


@pytest.mark.parametrize("step", [8, 16])
def test_bits_per_byte_follow_from_the_loss_and_the_manifest(finished_run, dataset, step):
    record = validation_records(finished_run)[step]
    split = Manifest.load(dataset).splits["validation"]
    bits = record["loss"] / math.log(2) * split.num_tokens / split.num_text_bytes
    assert record["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert record["perplexity"] == pytest.approx(math.exp(record["loss"]), rel=1e-12)


def test_the_final_validation_reads_all_samples(finished_run, dataset):
    records = validation_records(finished_run)
    assert list(records) == [8, 16]
    assert records[8]["samples"] == 10
    assert records[16]["samples"] == Manifest.load(dataset).splits["validation"].num_samples


def test_a_finished_run_holds_a_sample_of_text(finished_run):
    assert len((finished_run / "sample.txt").read_text(encoding="utf-8")) > 20


def evaluate_twice(here: Any, config: RunConfig, folder: Path, batch_size: int) -> list[dict[str, float]]:
    from pretrain.engine.build import build_engine
    from tests.support.training import join

    validation = PackedDataset.open(folder, "validation")
    tokenizer = validation.manifest.tokenizer
    engine = build_engine(config, tokenizer.vocab_size, join(here, config), here.device, eod_id=tokenizer.eod_id)
    shown: list[tuple[int, int]] = []
    results = [
        evaluate(
            engine,
            {"one": validation},
            batch_size=batch_size,
            rank=here.rank,
            size=here.world_size,
            max_samples=None,
            show=lambda done, total: shown.append((done, total)),
        )
        for _ in range(2)
    ]
    number = validation.num_samples
    assert shown[0] == (0, number) and shown[-1] == (number, number) and shown == sorted(shown[: len(shown) // 2]) * 2
    return results


@pytest.mark.parametrize(("zero_stage", "world_size", "batch_size"), [(1, 1, 5), (2, 2, 2), (3, 3, 2)])
def test_every_sample_counts_once_however_they_are_shared(dataset, zero_stage, world_size, batch_size):
    config = load_run_config([*SHAPE, *TRAINING, f"engine.zero_stage={zero_stage}", "model.hidden_dropout=0.3"])
    (alone,) = run_ranks(evaluate_twice, 1, config, dataset, 1)
    for first, second in run_ranks(evaluate_twice, world_size, config, dataset, batch_size):
        assert second["loss"] == first["loss"]
        assert first["samples"] == second["samples"] == alone[0]["samples"]
        assert first["samples"] == Manifest.load(dataset).splits["validation"].num_samples
        assert first["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)


class Uniform:
    """An engine that takes all tokens for equally likely."""

    def evaluate(self, tokens: Any, mask: Any) -> torch.Tensor:
        return torch.tensor([float(mask.sum()), float(mask.sum())], dtype=torch.float64)


def test_a_stop_request_ends_an_unfinished_validation(dataset):
    validation, asked = PackedDataset.open(dataset, "validation"), []

    def evaluated(stop_at: int) -> dict[str, float] | None:
        asked.clear()
        return evaluate(
            Uniform(),  # type: ignore[arg-type]
            {"one": validation},
            batch_size=2,
            rank=0,
            size=1,
            max_samples=None,
            ask_stop=lambda: asked.append(True) or (lambda: len(asked) >= stop_at),
        )

    assert evaluated(2) is None and len(asked) == 2
    number = -(-validation.num_samples // 2)
    for stop_at in (number, number + 1):
        found = evaluated(stop_at)
        assert found is not None and found["samples"] == validation.num_samples and len(asked) == number
