"""Ladder files for these tests."""

from pathlib import Path
from typing import Any

import yaml

SIZES = {"layers": [1, 2], "width_per_layer": 32, "head_size": 16, "ffn_ratio": 2.0}
CONTENT: dict[str, Any] = {
    "name": "small",
    "overrides": [
        *("model=tiny_llama", "model.seq_length=32", "tokenizer.vocab_size=300", "lr_schedule=wsd"),
        *("train.global_batch_size=8", "train.micro_batch_size=8", "optim.lr=1e-3"),
    ],
    "sizes": SIZES,
    "tokens": {"multiples": [0.1, 0.4]},
}


def write_file(folder: Path, **changes: Any) -> str:
    """A ladder file with some keys changed; null leaves a key out."""
    path = folder / "ladder.yaml"
    content = {key: value for key, value in {**CONTENT, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return str(path)
