"""Describes how a run was made: source revision, package versions, machine. No environment variable is recorded."""

import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.stream.mixture import TrainingData
from pretrain.config.derived import micro_batches, model_vocab_size
from pretrain.config.redact import without_secrets
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.model.size import count_parameters
from pretrain.tracking.pace import validation_sizes
from pretrain.tracking.speed import DevicePeak

DESCRIPTION_FILE = "description.json"

_SOURCE = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "pretrain",
    "torch",
    "triton",
    "deepspeed",
    "megatron-core",
    "sentencepiece",
    "webdataset",
    "wandb",
    "hydra-core",
    "numpy",
)


def describe_environment() -> dict[str, Any]:
    """Git revision (None outside a checkout), versions, host, device, cores and threads, ready for JSON."""
    return {
        "git": _git_state(_SOURCE),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES} | _libraries(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": _device_name(),
        "cores": os.cpu_count(),
        "threads": _num_threads(),
    }


def describe_run(
    config: RunConfig,
    dataset: TrainingData,
    validation: Sequence[PackedDataset],
    layout: ParallelLayout,
    peak: DevicePeak | None,
) -> dict[str, Any]:
    """Parameter counts, layout, data and peak FLOPS of this attempt, for the run folder, wandb and the report."""
    manifest, sources = dataset.manifest, [split.manifest for split in validation]
    count = count_parameters(config.model, model_vocab_size(config.model, manifest.tokenizer.vocab_size))
    return {
        "parameters": {**asdict(count), "total": count.total},
        "layout": {
            "world_size": layout.world_size,
            "tensor_parallel": layout.tp,
            "pipeline_parallel": layout.pp,
            **({"context_parallel": layout.cp} if layout.cp > 1 else {}),
            "data_parallel": layout.replicas,
            "gradient_accumulation": micro_batches(config.train, layout.replicas),
        },
        "data": {
            "corpus": ", ".join(source.corpus.name for source in sources),
            "corpus_digest": ", ".join(source.corpus.digest for source in sources),
            "dataset_digest": ", ".join(source.digest for source in sources),
            "tokenizer": f"{manifest.tokenizer.kind}, {manifest.tokenizer.vocab_size} pieces",
            "tokenizer_fingerprint": manifest.tokenizer.fingerprint,
            "document_mask": config.data.document_mask,
            "train_tokens": dataset.num_train_tokens,
            "validation_bytes": sum(split.record.num_text_bytes for split in validation),
            "final_validation_samples": validation_sizes(
                [split.num_samples for split in validation], config.evaluation
            ).final,
        },
        "peak": {"tflops": peak.flops / 1e12, "source": peak.source} if peak else None,
        **describe_environment(),
    }


def describe_checkpoint(config: RunConfig, manifest: Manifest) -> dict[str, Any]:
    """The description that a checkpoint holds besides its tensors."""
    vocab_size = model_vocab_size(config.model, manifest.tokenizer.vocab_size)
    return {
        "config": without_secrets(asdict(config)),
        "environment": describe_environment(),
        "parameters": count_parameters(config.model, vocab_size).total,
        "vocab_size": vocab_size,
        "tokenizer_fingerprint": manifest.tokenizer.fingerprint,
    }


def write_description(run_dir: Path, description: Mapping[str, object]) -> None:
    """Write description.json into the run folder, where the report reads it."""
    content = json.dumps(description, indent=2, default=str, ensure_ascii=False)
    write_durably(run_dir / DESCRIPTION_FILE, f"{content}\n".encode())


def _git_state(source: Path) -> dict[str, Any] | None:
    """Revision of the checkout at `source` and whether tracked files differ from it."""
    top, revision = _git(source, "rev-parse", "--show-toplevel"), _git(source, "rev-parse", "HEAD")
    # An installed copy may be inside another project's checkout, whose revision would be wrong here.
    if top is None or revision is None or Path(top).resolve() != source:
        return None
    return {"revision": revision, "dirty": bool(_git(source, "status", "--porcelain", "--untracked-files=no"))}


def _git(source: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR and its like point to the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(source), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> dict[str, str | int | None]:
    """The CUDA libraries of torch; one version of torch is built with several of them."""
    import torch

    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _num_threads() -> int:
    """The threads that torch uses in this process; their number changes how sums are rounded."""
    import torch

    return torch.get_num_threads()


def _device_name() -> str:
    """The device that this process computes on; a GPU counts only if the process uses it."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
