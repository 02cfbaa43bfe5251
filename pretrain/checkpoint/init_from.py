"""Continued pretraining: a new run begins with the weights of another, and with nothing else of it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.config_text import written
from data_pipeline.shards.manifest import TokenizerRecord
from pretrain.checkpoint.store import (
    MANIFEST,
    Checkpoint,
    CheckpointStore,
    complete_ones,
    newest_whole,
    read_checkpoint,
)
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.model import ModelConfig
from pretrain.engine.interface import Engine

_FREE = ("name", "rope_base", "hidden_dropout", "attention_dropout", "init_std", "vocab_multiple_of")
"""Of the model, what may be otherwise in the new run; and `seq_length` without learned positions."""

log = logging.getLogger(__name__)


def find_initial(init_from: str, run_dir: Path, model: ModelConfig, tokenizer: TokenizerRecord) -> Checkpoint | None:
    """The checkpoint whose weights a new run begins with; None where the run has one of its own.

    Its files are checked by their sizes alone: reading terabytes is for all ranks together, once they have met.
    Raises UserError where there is none, or the model or tokenizer is another.
    """
    if complete_ones(run_dir / "checkpoints"):
        return None
    return find_fitting(init_from, model, tokenizer)


def find_fitting(init_from: str, model: ModelConfig, tokenizer: TokenizerRecord) -> Checkpoint:
    """The checkpoint that run.init_from names; raises UserError where there is none, or it is of another model or
    tokenizer."""
    found = _find(init_from)
    problems: list[Problem | str] = [*_other_shape(found, model), *_other_tokenizer(found, tokenizer)]
    if problems:
        raise ConfigError(problems)
    return found


def load_initial(
    store: CheckpointStore,
    engine: Engine,
    found: Checkpoint | None,
    find: Callable[[], Checkpoint] | None,
) -> dict[str, Any]:
    """On all ranks, with what rank 0 found: load the weights; returns where they came from, for the record.

    `find` looks for them again, where nothing was found before (as the run had checkpoints of its own, all damaged) or
    it is gone by now; None: the run begins with no weights.
    """
    if find is None:
        return {"init_from": None}
    checkpoint, digest = store.restore_weights(engine, found, find, digests=True)
    log.info("weights of %s (step %d); optimizer, data and steps begin anew", checkpoint.folder, checkpoint.step)
    return {"init_from": {"checkpoint": str(checkpoint.folder), "step": checkpoint.step, "manifest_sha256": digest}}


def origin_of(own: Checkpoint) -> dict[str, Any]:
    """Where the weights of a run came from that goes on from a checkpoint of its own."""
    return {"init_from": own.manifest.get("init_from")}


def _find(init_from: str) -> Checkpoint:
    path = Path(init_from)
    if not path.is_dir():
        raise ConfigError([Problem("run.init_from", init_from, "no such folder", "give a run folder or a checkpoint")])
    named = (path / MANIFEST).exists()
    found = read_checkpoint(path, digests=False) if named else newest_whole(path / "checkpoints", digests=False)
    if found is None:
        rule = "holds no whole checkpoint"
        raise ConfigError([Problem("run.init_from", init_from, rule, "give a run folder or a checkpoint")])
    return found


def _other_shape(found: Checkpoint, model: ModelConfig) -> Iterator[Problem]:
    there, here = _shape(found.manifest.get("config", {}).get("model", {})), _shape(asdict(model))
    free = _FREE if model.position == "learned" else (*_FREE, "seq_length")
    for key in here:
        if key not in free and there.get(key) != here[key]:
            rule = f"the weights in {found.folder} are of a model with {key}={written(there.get(key))}"
            yield Problem(f"model.{key}", here[key], rule, "set the same, or train without run.init_from")


def _shape(model: Mapping[str, Any]) -> dict[str, Any]:
    """With what null stands for."""
    heads = model["num_heads"]
    return {
        **model,
        "num_query_groups": model["num_query_groups"] or heads,
        "head_dim": model["head_dim"] or model["hidden_size"] // heads,
    }


def _other_tokenizer(found: Checkpoint, tokenizer: TokenizerRecord) -> Iterator[str]:
    manifest = found.manifest
    there = f"run.init_from: the weights in {found.folder} were trained with"
    data = manifest.get("config", {}).get("data", {}).get("path")
    remedy = f"prepare this text into another data.path with tokenizer.path= that tokenizer, which lies in {data}"
    if manifest.get("vocab_size") != tokenizer.vocab_size:
        yield f"{there} a vocabulary of {manifest.get('vocab_size')}, the data has {tokenizer.vocab_size}; {remedy}"
    elif (fingerprint := manifest.get("tokenizer_fingerprint")) != tokenizer.fingerprint:
        yield f"{there} tokenizer {fingerprint}, the data with {tokenizer.fingerprint}; {remedy}"
