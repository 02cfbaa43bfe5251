"""Writes the checkpoint that this and every later version must read: `python -m tests.golden.make_checkpoint --force`.

It is made once for each format version, and then stays as it is: what must be shown is that old files are read.
checkpoint-vN.json has the shape and SHA-256 of every tensor, taken from the live engine and not from files. Version 1
is as 2, but its manifest has no digest.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.checkpoint.manifest import FORMAT_VERSION
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from pretrain.tracking.provenance import describe_environment
from tests.support.models import VOCAB_SIZE, run_config
from tests.support.ranks import run_ranks

HERE = Path(__file__).parent
CHECKPOINT = HERE / f"checkpoint-v{FORMAT_VERSION}"
DIGESTS = HERE / f"checkpoint-v{FORMAT_VERSION}.json"
RANKS, STEPS = 4, 2
SMALLER = ("num_layers=1", "hidden_size=9", "head_dim=4", "num_heads=2", "num_query_groups=2", "ffn_hidden_size=14")


def config(**other: Any) -> RunConfig:
    """Matrices cut by columns and by rows, and those again into flat ranges that end within rows."""
    named = ("run.name=golden", "run.dir=runs/golden", "train.global_batch_size=24", "train.micro_batch_size=2")
    layout = {"tp": 2, "zero_stage": 3} | other
    stages = ("parallel.pp_layout=Et|L",) if layout.get("pp") == 2 else ()
    small = (f"model.{setting}" for setting in SMALLER)
    return run_config("llama_tied", *small, *named, *stages, **layout)


def digests(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Describe whole tensors, row by row, little-endian."""
    return {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(),
        }
        for name, value in sorted(state.items())
    }


def make(here: Runtime, folder: Path) -> dict[str, Any]:
    """Train two steps and save; returns the digests of what the engine holds."""
    from pretrain.checkpoint.store import CheckpointStore
    from tests.support.training import start, train, whole_state

    engine = start(here, config())
    train(here, config(), engine, range(STEPS))
    samples = STEPS * config().train.global_batch_size
    state = RunState(step=STEPS, position=samples, tokens=samples * config().model.seq_length)
    environment = describe_environment()
    description = {
        "config": asdict(config()),
        "environment": {"git": None, "versions": environment["versions"]},  # no word of the machine it is made on
        "vocab_size": VOCAB_SIZE,
        "tokenizer_fingerprint": "of no tokenizer: random tokens",
        "dataset_digest": "of no dataset: random tokens",
        "saved_at": "2025-01-01T00:00:00+00:00",
    }
    CheckpointStore(folder, groups=engine.groups, keep_last=1, keep_every=0).save(engine, state, description)
    return digests(whole_state(engine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="replace the one that is there")
    if CHECKPOINT.exists() and not parser.parse_args().force:
        parser.error(f"{CHECKPOINT} is there; it stays as it is, or what reads it is proved no more")
    from tests.golden.make_checkpoint import make as on_ranks  # they know it by its module's name, not as `__main__`

    with tempfile.TemporaryDirectory() as folder:
        recorded = run_ranks(on_ranks, RANKS, Path(folder))[0]
        shutil.rmtree(CHECKPOINT, ignore_errors=True)
        shutil.copytree(next(Path(folder).glob("checkpoints/step-*")), CHECKPOINT)
    DIGESTS.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
