"""`pretrain export`: a checkpoint as a folder that transformers and servers load without this system."""

import dataclasses
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.progress import show_progress
from data_pipeline.storage.atomic_write import partial_of, sync_folder, write_durably
from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.checkpoint.trained_model import find_fitting_checkpoint, without_training
from pretrain.config.commands import ExportConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.load import read_run_config
from pretrain.config.parallel import ParallelConfig
from pretrain.config.run import RunConfig
from pretrain.export.card import CURVE, model_card
from pretrain.huggingface.architectures import architecture_of, config_json
from pretrain.huggingface.weights import units
from pretrain.model.scaling import Scaling
from pretrain.run.tokenizer import TOKENIZER_FOLDER, tokenizer_of

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint

RECORD = "export.json"

log = logging.getLogger(__name__)


def export(config: ExportConfig) -> Path:
    """Export the checkpoint; returns the folder. It appears complete, or not at all.

    Raises UserError for settings, a model that no class computes, a damaged checkpoint, and logits that differ.
    """
    check_settings(config)
    run, into = Path(config.run), Path(config.into)
    trained = read_run_config(run / "config.yaml")
    architecture_of(trained.model)
    _refuse_multiplier(trained)
    if config.check:
        from pretrain.export.check import require_transformers

        require_transformers()
    partial = partial_of(into.resolve())
    try:
        partial.mkdir(parents=True)
        _fill(partial, config, run, trained)
        _refuse_existing(config)
        partial.rename(into)
        sync_folder(into.resolve().parent)
    except OSError as error:
        raise RunError(f"{config.into} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return into


def check_settings(config: ExportConfig) -> None:
    """Raise ConfigError with every fault of the settings."""
    problems = [
        Problem(key, value, "must be at least 1")
        for key in ("shard_bytes", "workers")
        if (value := getattr(config, key)) < 1
    ]
    if not Path(config.run).is_dir():
        problems.append(Problem("run", config.run, "no such folder", "give the folder of a run"))
    if problems:
        raise ConfigError(problems)
    _refuse_existing(config)


def _refuse_multiplier(trained: RunConfig) -> None:
    """No class of transformers multiplies the logits of these architectures by a factor."""
    if Scaling.of(trained.model, trained.optim).output != 1:
        raise RunError(
            f"a tied head with optim.base_width={trained.optim.base_width} multiplies the logits by a factor that the "
            "exported format does not have",
            "train with model.tie_embeddings=false, or with optim.base_width=null",
        )


def _refuse_existing(config: ExportConfig) -> None:
    if os.path.lexists(config.into):
        raise ConfigError([Problem("into", config.into, "exists already", "name a new folder, or remove this one")])


def _fill(folder: Path, config: ExportConfig, run: Path, trained: RunConfig) -> None:
    """Write all files. A live run may delete the newest checkpoint meanwhile; then the next newest is exported."""
    from pretrain.checkpoint.manifest import MANIFEST, CheckpointDeleted, digest_of

    tokenizer = tokenizer_of(run, trained.data)
    find = functools.partial(find_fitting_checkpoint, run, config.checkpoint, trained, tokenizer)
    checkpoint = find()
    while True:
        try:
            digest = digest_of(checkpoint.folder / MANIFEST)["sha256"]
            files = _write_weights(folder, config, trained, checkpoint)
            break
        except (RunError, OSError):
            if checkpoint.folder.exists():
                raise
            if config.checkpoint != "latest":
                raise CheckpointDeleted(checkpoint.folder) from None
            log.warning("%s was deleted by its run meanwhile; exporting the newest again", checkpoint.folder)
            for path in folder.iterdir():
                path.unlink()
            checkpoint = find()
    end_token = tokenizer.eod_id
    vocab_size = int(checkpoint.manifest["vocab_size"])
    described = config_json(trained.model, vocab_size=vocab_size, end_token=end_token, dtype=config.dtype)
    _write_json(folder / "config.json", described)
    generation = {"eos_token_id": end_token, "pad_token_id": end_token}
    _write_json(folder / "generation_config.json", generation)
    note = None
    if config.tokenizer:
        from pretrain.export.tokenizer_json import write_tokenizer

        note = write_tokenizer(_tokenizer_files(run, trained), folder, seq_length=trained.model.seq_length)
    name = architecture_of(trained.model).name
    card = model_card(trained, run, checkpoint.manifest, architecture=name, dtype=config.dtype)
    write_durably(folder / "README.md", card.encode())
    if (run / CURVE).exists():
        shutil.copyfile(run / CURVE, folder / CURVE)
    record = {
        "class": name,
        "checkpoint": {"step": checkpoint.step, "manifest_sha256": digest},
        "dtype": config.dtype,
        "files": files,
        "tokenizer": note and {"ids": note, **_compared_ids(config, run, trained, folder)},
        "versions": dict(_versions()),
        "check": _checked(config, run, trained, checkpoint, folder) if config.check else None,
    }
    _write_json(folder / RECORD, record)


def _write_weights(
    folder: Path, config: ExportConfig, trained: RunConfig, checkpoint: "Checkpoint"
) -> dict[str, dict[str, Any]]:
    from pretrain.checkpoint.whole_tensors import StoredWeights
    from pretrain.export.weight_files import plan_files, write_files

    table = list(units(trained.model, int(checkpoint.manifest["vocab_size"])))
    files = plan_files(table, config.dtype, config.shard_bytes)
    total, started = sum(file.bytes for file in files), time.perf_counter()
    log.info("%s: %s in %d file(s), %.1f MB", checkpoint.folder.name, config.dtype, len(files), total / 1e6)
    with show_progress("export", total) as show:
        digests = write_files(
            folder, StoredWeights(checkpoint.folder), files, config.dtype, workers=config.workers, show=show
        )
    seconds = time.perf_counter() - started
    log.info("weights written in %.1f s, %.0f MB/s", seconds, total / 1e6 / max(seconds, 1e-9))
    return {file.name: {"bytes": (folder / file.name).stat().st_size, "sha256": digests[file.name]} for file in files}


def _checked(
    config: ExportConfig, run: Path, trained: RunConfig, checkpoint: "Checkpoint", folder: Path
) -> dict[str, Any]:
    from pretrain.export.check import compare, refuse_difference

    used = without_training(trained, ParallelConfig(tp=1, sp=False, pp=1, vp=1, pp_layout=None), "cpu", 1)
    found = compare(run, used, tokenizer_of(run, trained.data), lambda: checkpoint, folder)
    log.info(
        "compared with the run on %d tokens: logits differ by at most %.1e, the likeliest token is the same at "
        "%.2f%% of positions, loss differs by %.1e nats",
        found.tokens,
        found.largest_difference,
        100 * found.same_argmax,
        found.loss_difference,
    )
    refuse_difference(found, config.dtype)
    return dataclasses.asdict(found)


def _compared_ids(config: ExportConfig, run: Path, trained: RunConfig, folder: Path) -> dict[str, int]:
    """How many of some texts have other IDs in the exported tokenizer; nothing with check=false."""
    if not config.check:
        return {}
    from pretrain.export.check import sample_texts
    from pretrain.export.tokenizer_json import different_ids

    texts = sample_texts()
    others, lost = different_ids(tokenizer_of(run, trained.data), folder, texts)
    if lost:
        raise RunError(f"the exported tokenizer does not give back {lost} of {len(texts)} texts")
    return {"texts": len(texts), "with_other_ids": others}


def _tokenizer_files(run: Path, trained: RunConfig) -> TokenizerFiles:
    kept = TokenizerFiles.only_one_in(run / TOKENIZER_FOLDER)
    if kept is None:
        raise RunError(f"{run / TOKENIZER_FOLDER}: has no tokenizer", "export with tokenizer=false")
    return kept


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("pretrain", "torch", "transformers"):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _write_json(path: Path, values: object) -> None:
    write_durably(path, (json.dumps(values, indent=1) + "\n").encode())
