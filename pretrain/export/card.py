"""The model card (README.md) of an exported folder: what the model is, how it was made, and what a reader must know."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.model.size import count_parameters

CURVE = "loss.png"


def model_card(config: RunConfig, run: Path, manifest: Mapping[str, Any], *, architecture: str, dtype: str) -> str:
    """The card of the checkpoint with this manifest. It names data by digest, and no folder of this machine."""
    return "\n".join(_lines(config, run, manifest, architecture, dtype)) + "\n"


def _lines(config: RunConfig, run: Path, manifest: Mapping[str, Any], architecture: str, dtype: str) -> Iterator[str]:
    model, state = config.model, manifest["state"]
    total = count_parameters(model, int(manifest["vocab_size"])).total
    yield from (
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- pretrained",
        "---",
        "",
    )
    yield from (f"# {config.run.name}", "")
    yield f"A decoder of {total:,} parameters ({architecture}, {dtype} weights), pretrained from random weights with"
    yield "`pretrain`. It continues text. It was not trained to follow instructions."
    yield from ("", "## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    yield 'model = AutoModelForCausalLM.from_pretrained("FOLDER")'
    yield 'inputs = tokenizer("def main(", return_tensors="pt")'
    yield "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"
    yield from ("```", "", "## What a reader must know", "")
    yield "- No token precedes a text: there is no beginning-of-text token, and the tokenizer adds none."
    yield "- An end-of-document token follows each document. To begin a new document, start with it."
    yield "- The text of a special token, such as `</s>`, is ordinary text and never becomes the token."
    if config.data.document_mask:
        yield "- In training, a token never saw another document. Readers that attend past an end-of-document token, as"
        yield "  transformers does, compute something that the model was not trained on."
    yield f"- It was trained on samples of {model.seq_length:,} tokens."
    yield from ("", "## Model", "", "| | |", "|---|---|")
    for name, value in _shape(config, int(manifest["vocab_size"])):
        yield f"| {name} | {value} |"
    yield from ("", "## Training", "", "| | |", "|---|---|")
    for name, value in _training(config, manifest, run):
        yield f"| {name} | {value} |"
    yield ""
    if (run / CURVE).exists():
        yield from (f"![Loss of the training]({CURVE})", "")
    yield f"Step {state['step']:,}; `export.json` has the digests of the files and of the checkpoint."


def _shape(config: RunConfig, vocab_size: int) -> Iterator[tuple[str, object]]:
    model = config.model
    yield "layers", model.num_layers
    yield "hidden size", model.hidden_size
    yield "heads", f"{model.num_heads} of {model.head_size}, {model.kv_heads} for keys and values"
    yield "feed-forward size", f"{model.ffn_hidden_size}, {model.activation}"
    yield "normalization", model.norm
    yield "positions", model.position if model.position == "learned" else f"rotary, base {model.rope_base:g}"
    yield "vocabulary", f"{vocab_size:,}"


def _training(config: RunConfig, manifest: Mapping[str, Any], run: Path) -> Iterator[tuple[str, object]]:
    state, data = manifest["state"], _description(run).get("data", {})
    yield "tokens", f"{state['tokens']:,}"
    yield "steps", f"{state['step']:,} of {config.train.global_batch_size} samples"
    if config.run.init_from:
        yield "initial weights", "those of another run"
    yield "learning rate", f"{config.optim.lr:g}, {config.lr_schedule.name}"
    if corpus := data.get("corpus"):
        yield "data", corpus
    yield "digest of the dataset", f"`{manifest.get('dataset_digest', 'unknown')}`"
    yield "tokenizer", data.get("tokenizer", "unknown")
    yield from _validation(run, int(state["step"]))


def _validation(run: Path, step: int) -> Iterator[tuple[str, str]]:
    """The last validation up to this step."""
    last: Mapping[str, Any] = {}
    path = run / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # a line that a killed run left unfinished
            continue
        if record.get("kind") == "validation" and record.get("step", math.inf) <= step:
            last = record
    for key, name in (("loss", "validation loss (nats a token)"), ("bits_per_byte", "validation bits per byte")):
        if isinstance(last.get(key), float):
            yield name, f"{last[key]:.4f} at step {last['step']:,}"


def _description(run: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads((run / "description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
