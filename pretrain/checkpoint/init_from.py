"""Continued pretraining: a new run starts with the weights of another run, and nothing else of it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_pipeline.config_text import written
from data_pipeline.shards.manifest import TokenizerRecord
from pretrain.checkpoint.foreign import ForeignCheckpoint, open_foreign
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.on_disk import Checkpoint, complete_ones, newest_whole, read_checkpoint
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.derived import model_vocab_size
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.model import ModelConfig, RopeScaling
from pretrain.config.optim import OptimConfig
from pretrain.engine.interface import Engine
from pretrain.huggingface.folder import is_foreign
from pretrain.model.scaling import Scaling

_FREE = ("name", "rope_base", "rope_scaling", "hidden_dropout", "attention_dropout", "init_std", "vocab_multiple_of")
"""Model keys that may differ in the new run; also `seq_length` without learned positions, and `vocab_size`, because the
size of the vocabulary is compared with that of the checkpoint."""

_GIVE = "give a run folder, a checkpoint or a Hugging Face folder"

log = logging.getLogger(__name__)


def find_initial(
    init_from: str,
    run_dir: Path,
    model: ModelConfig,
    tokenizer: TokenizerRecord,
    optim: OptimConfig | None = None,
) -> Checkpoint | None:
    """The checkpoint whose weights a new run starts with; None if the run has a checkpoint of its own.

    Only the sizes of its files are checked: all ranks together read them later. Raises UserError if there is no such
    checkpoint, or it has another model or tokenizer.
    """
    if complete_ones(run_dir / "checkpoints"):
        return None
    found = find_fitting(init_from, model, tokenizer)
    if optim is not None and (problem := _other_multiplier(found, model, optim)):
        raise ConfigError([problem])
    return found


def find_fitting(init_from: str, model: ModelConfig, tokenizer: TokenizerRecord) -> Checkpoint:
    """The checkpoint that run.init_from names.

    Raises UserError if there is no such checkpoint, or it has another model or tokenizer.
    """
    found = _find(init_from)
    problems: list[Problem | str] = [*_other_shape(found, model), *_other_tokenizer(found, model, tokenizer)]
    if problems:
        raise ConfigError(problems)
    for now, before in _other_positions(found.manifest["config"]["model"], model):
        log.warning("%s: the weights in %s were trained with %s", now, found.folder, before)
    return found


def load_initial(
    store: CheckpointStore,
    engine: Engine,
    found: Checkpoint | None,
    find: Callable[[], Checkpoint] | None,
) -> dict[str, Any]:
    """Load the weights on all ranks; returns their origin for the records. `found`: the checkpoint that rank 0 found.

    `find` searches again if nothing was found (the run has its own checkpoints, all damaged) or it was deleted since.
    None: the run starts with random weights.
    """
    if find is None:
        return {"init_from": None}
    checkpoint, digest = store.restore_weights(engine, found, find, digests=True)
    log.info("weights of %s (step %d); optimizer, data and steps start from zero", checkpoint.folder, checkpoint.step)
    return {"init_from": {"checkpoint": str(checkpoint.folder), "step": checkpoint.step, "manifest_sha256": digest}}


def origin_of(own: Checkpoint) -> dict[str, Any]:
    """The origin of the first weights of a run that resumes from its own checkpoint."""
    branch = {"branch_from": own.manifest["branch_from"]} if "branch_from" in own.manifest else {}
    return {"init_from": own.manifest.get("init_from"), **branch}


def _find(init_from: str) -> Checkpoint:
    path = Path(init_from)
    if not path.is_dir():
        raise ConfigError([Problem("run.init_from", init_from, "no such folder", _GIVE)])
    if is_foreign(path):
        return open_foreign(path)
    named = (path / MANIFEST).exists()
    found = read_checkpoint(path, digests=False) if named else newest_whole(path / "checkpoints", digests=False)
    if found is None:
        rule = "holds no whole checkpoint"
        raise ConfigError([Problem("run.init_from", init_from, rule, _GIVE)])
    return found


def _other_positions(there: Mapping[str, Any], model: ModelConfig) -> Iterator[tuple[str, str]]:
    """The settings of positions that differ from those of the weights: as they are now, and as they were."""
    if model.position != "rope":
        return
    base, length = (there.get(name, getattr(model, name)) for name in ("rope_base", "seq_length"))
    scaling = there.get("rope_scaling") or asdict(RopeScaling())
    if base != model.rope_base:
        yield f"model.rope_base={model.rope_base:g}", f"{base:g}"
    if scaling != asdict(model.rope_scaling):
        yield f"model.rope_scaling={written(asdict(model.rope_scaling))}", written(scaling)
    elif model.seq_length > length and base == model.rope_base:
        hint = "the same frequencies; model.rope_scaling or a larger model.rope_base helps them"
        yield f"model.seq_length={model.seq_length}", f"{length} tokens and {hint}"


def _other_shape(found: Checkpoint, model: ModelConfig) -> Iterator[Problem]:
    there, here = _shape(found.manifest.get("config", {}).get("model", {})), _shape(asdict(model))
    free = {*_FREE, "vocab_size"} if model.position == "learned" else {*_FREE, "vocab_size", "seq_length"}
    if isinstance(found, ForeignCheckpoint):
        # A preset may have the shape of the model, but not its frequencies. A scaling that is given was meant.
        free -= {"rope_base"} if model.rope_scaling.kind != "none" else {"rope_base", "rope_scaling"}
    for key in here:
        if key not in free and there.get(key) != here[key]:
            rule = f"the weights in {found.folder} are of a model with {key}={written(there.get(key))}"
            yield Problem(f"model.{key}", here[key], rule, "set the same, or train without run.init_from")


def _other_multiplier(found: Checkpoint, model: ModelConfig, optim: OptimConfig) -> Problem | None:
    """The logits of a tied head have a factor, by optim.base_width, which is a part of the function."""
    before = found.manifest.get("config", {}).get("optim", {}).get("base_width")
    there = replace(optim, base_width=before)
    if Scaling.of(model, there).output == Scaling.of(model, optim).output:
        return None
    rule = f"the weights in {found.folder} were trained with {written(before)}, and the head is tied"
    return Problem("optim.base_width", optim.base_width, rule, f"set optim.base_width={written(before)}")


def _shape(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model keys, with the default values that null means."""
    heads = model["num_heads"]
    return {
        **model,
        "num_query_groups": model["num_query_groups"] or heads,
        "head_dim": model["head_dim"] or model["hidden_size"] // heads,
        "experts": _experts(model.get("experts") or {}),
    }


def _experts(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the experts that the weights depend on. It is empty for a model without experts."""
    balance = ("sequence_loss", "z_loss", "bias_rate")
    return {key: value for key, value in given.items() if key not in balance} if given.get("count") else {}


def _other_tokenizer(found: Checkpoint, model: ModelConfig, tokenizer: TokenizerRecord) -> Iterator[Problem]:
    manifest = found.manifest
    there = f"the weights in {found.folder} were trained with"
    data = manifest.get("config", {}).get("data", {}).get("path") or found.folder
    hint = f"prepare this text into another data.path with the tokenizer in {data}, which tokenizer.path must name"
    size, fingerprint = manifest.get("vocab_size"), manifest.get("tokenizer_fingerprint")
    same_size = size == model_vocab_size(model, tokenizer.vocab_size)
    if fingerprint is None:
        log.warning("%s has no tokenizer: whether its IDs are those of the data is not known", found.folder)
    same_tokenizer = fingerprint in (None, tokenizer.fingerprint)
    if same_tokenizer and isinstance(size, int) and size > model_vocab_size(model, tokenizer.vocab_size):
        rule = f"the weights in {found.folder} are of {size} tokens, the tokenizer has {tokenizer.vocab_size}"
        yield Problem("model.vocab_size", model.vocab_size, rule, f"set model.vocab_size={size}")
    elif not same_size:
        rule = f"{there} a vocabulary of {size}, the data has {tokenizer.vocab_size}"
        yield Problem("run.init_from", str(found.folder), rule, hint)
    elif not same_tokenizer:
        rule = f"{there} tokenizer {fingerprint}, the data was prepared with {tokenizer.fingerprint}"
        yield Problem("run.init_from", str(found.folder), rule, hint)
