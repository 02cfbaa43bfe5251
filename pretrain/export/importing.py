"""`pretrain import`: a Hugging Face folder as a run with one checkpoint, which has weights and no optimizer state."""

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.progress import show_progress
from data_pipeline.storage.atomic_write import partial_of, sync_folder, write_durably
from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.config.commands import ImportConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.load import load_run_config, to_yaml
from pretrain.config.model import ModelConfig
from pretrain.config.redact import without_secrets
from pretrain.config.run import RunConfig
from pretrain.model.size import count_parameters
from pretrain.run.tokenizer import TOKENIZER_FOLDER
from pretrain.tracking.provenance import describe_environment

if TYPE_CHECKING:
    from pretrain.checkpoint.tensors import Chunk
    from pretrain.huggingface.folder import ForeignWeights

log = logging.getLogger(__name__)


def import_folder(config: ImportConfig) -> Path:
    """Make the run folder; returns it. It appears complete, or not at all. One tensor at a time is in memory."""
    from pretrain.huggingface.folder import ForeignWeights

    folder, run = Path(config.folder), Path(config.run)
    _refuse_existing(config)
    if not folder.is_dir():
        raise ConfigError([Problem("folder", config.folder, "no such folder", "give a folder with a config.json")])
    weights = ForeignWeights(folder)
    files = _tokenizer_files(config, weights)
    tokenizer = files.load()
    if tokenizer.vocab_size > weights.vocab_size:
        rule = f"has {tokenizer.vocab_size} tokens, and the model predicts only {weights.vocab_size}"
        raise ConfigError([Problem("tokenizer", files.place, rule, "name the tokenizer of this model as tokenizer")])
    model = _model(weights, tokenizer.vocab_size)
    described = dataclasses.replace(load_run_config([f"run.name={run.resolve().name}"]), model=model)
    partial = partial_of(run.resolve())
    try:
        partial.mkdir(parents=True)
        files.write(partial / TOKENIZER_FOLDER)
        write_durably(partial / "config.yaml", to_yaml(described).encode())
        _write_checkpoint(partial / "checkpoints" / "step-00000000", weights, described, tokenizer.fingerprint)
        _refuse_existing(config)
        partial.rename(run)
        sync_folder(run.resolve().parent)
    except OSError as error:
        raise RunError(f"{config.run} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%s: %s parameters", run, f"{count_parameters(model, weights.vocab_size).total:,}")
    return run


def _refuse_existing(config: ImportConfig) -> None:
    if os.path.lexists(config.run):
        raise ConfigError([Problem("run", config.run, "exists already", "name a new folder, or remove this one")])


def _tokenizer_files(config: ImportConfig, weights: "ForeignWeights") -> TokenizerFiles:
    from pretrain.checkpoint.foreign import tokenizer_files_of

    found = TokenizerFiles.read(Path(config.tokenizer)) if config.tokenizer else tokenizer_files_of(weights.folder)
    if found is None:
        raise RunError(f"{weights.folder}: has no tokenizer.json and no tokenizer.model", "name the file as tokenizer")
    tokenizer = found.load(eod=weights.end_token if config.eod is None else config.eod)
    return dataclasses.replace(found, name=tokenizer.file_name, settings=tokenizer.settings.to_json())


def _model(weights: "ForeignWeights", tokenizer_size: int) -> ModelConfig:
    rows = weights.vocab_size
    return dataclasses.replace(weights.model, vocab_size=rows if rows != tokenizer_size else None)


def _write_checkpoint(folder: Path, weights: "ForeignWeights", config: RunConfig, fingerprint: str) -> None:
    from pretrain.checkpoint.files import merge_indices, write_tensors
    from pretrain.checkpoint.manifest import FORMAT_VERSION, MANIFEST, digest_of, sealed

    folder.mkdir(parents=True)
    total = 4 * count_parameters(config.model, weights.vocab_size).total
    with show_progress("import", total) as show:
        files = write_tensors(folder, 0, _chunks(weights, show), lambda: None)
    index = merge_indices(folder, 1)
    manifest = {
        "format_version": FORMAT_VERSION,
        "state": {"step": 0, "position": 0, "tokens": 0},
        "counters": {"adam_steps": 0.0},
        "layout": {"world_size": 1, "tp": 1, "pp": 1},
        "config": without_secrets(dataclasses.asdict(config)),
        "environment": describe_environment(),
        "parameters": total // 4,
        "vocab_size": weights.vocab_size,
        "tokenizer_fingerprint": fingerprint,
        "init_from": {"folder": str(weights.folder), "digest": weights.digest()},
        "files": {**files, index: digest_of(folder / index)},
    }
    write_durably(folder / MANIFEST, sealed(manifest))


def _chunks(weights: "ForeignWeights", show: Callable[[int], None]) -> "Iterator[Chunk]":
    from pretrain.checkpoint.tensors import Chunk
    from pretrain.checkpoint.whole_tensors import WEIGHT

    done = 0
    for name, shape in weights.shapes.items():
        tensor = weights.read(name).contiguous()
        yield Chunk(WEIGHT + name, shape, (0,) * len(shape), shape, tensor)
        done += 4 * tensor.numel()
        show(done)
