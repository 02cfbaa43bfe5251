"""Compares an exported folder, as transformers computes it, with the run's own engine on real text."""

import argparse
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.checkpoint.trained_model import trained_engine
from pretrain.config.errors import RunError, UserError
from pretrain.config.run import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.checkpoint.on_disk import Checkpoint

LARGEST_DIFFERENCE = 1e-5
"""Largest difference of two fp32 logits whose standard deviation is about 1. The sums are in another order."""
SAMPLES = 2
MAX_TOKENS = 512
"""Tokens of a sample at most: attention without a fused kernel needs memory that grows with the square."""


@dataclass(frozen=True)
class Check:
    """How the logits of the exported files differ from those of the run."""

    tokens: int
    largest_difference: float
    """The largest difference of two logits, relative to the standard deviation of the run's logits if it is above 1."""
    same_argmax: float
    """Share of the positions at which both predict the same token."""
    loss_difference: float
    """Export minus run, in nats a token."""


def require_transformers() -> None:
    """Raise UserError if the check cannot be made."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError(
            "check=true needs the package transformers, which is not installed",
            "pip install 'pretrain[export]'",
            "or export with check=false",
        ) from None


def compare(run: Path, used: RunConfig, tokenizer: Tokenizer, find: Callable[[], "Checkpoint"], folder: Path) -> Check:
    """Compute both on the same text. The exported weights are read as float32 whatever their type is."""
    tokens = _tokens(tokenizer, min(used.model.seq_length, MAX_TOKENS))
    with trained_engine(run, used, tokenizer, find, seed=0) as model:
        ours = model.engine.logits(tokens).cpu()
    theirs = logits_of_folder(folder, tokens)
    return difference(ours, theirs, tokens)


def refuse_difference(check: Check, dtype: str) -> None:
    """Raise RunError if float32 files give other logits; 16-bit weights differ by their rounding."""
    if dtype == "float32" and not check.largest_difference <= LARGEST_DIFFERENCE:
        raise RunError(
            f"the exported files give other logits than the run: they differ by up to {check.largest_difference:.2e}, "
            f"but at most {LARGEST_DIFFERENCE:.0e} is allowed",
            "this is a fault of the export: please report it with the versions of torch and transformers",
        )


def logits_of_folder(folder: Path, tokens: "Tensor") -> "Tensor":
    """The logits [b, s, vocabulary] in fp32 that transformers computes from the files, without a network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.eval()  # config.json has the dropout of training
    with torch.no_grad():
        logits: Tensor = model(tokens).logits
    return logits.float()


def difference(ours: "Tensor", theirs: "Tensor", tokens: "Tensor") -> Check:
    """Compare two tensors of logits [b, s, vocabulary] for tokens [b, s]."""
    import torch

    def loss(logits: "Tensor") -> float:
        flat, targets = logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        return float(torch.nn.functional.cross_entropy(flat.double(), targets))

    scale = max(1.0, float(ours.std()))
    return Check(
        tokens=tokens.numel(),
        largest_difference=float((ours - theirs).abs().max()) / scale,
        same_argmax=float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()),
        loss_difference=loss(theirs) - loss(ours),
    )


def sample_texts() -> list[str]:
    """Texts that every machine has: the paragraphs of some modules of Python."""
    sources = (inspect.getsource(module) for module in (argparse, inspect))
    return [text for source in sources for text in source.split("\n\n") if text]


def _tokens(tokenizer: Tokenizer, length: int) -> "Tensor":
    """Text that every machine has: the source of a module of Python. There is no end of a document in it."""
    import torch

    ids = tokenizer.encode(inspect.getsource(argparse))
    return torch.tensor(ids[: SAMPLES * length]).view(SAMPLES, length)
