"""Which keys may change when a run resumes, and the keys that differ between two configurations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.config_text import written
from pretrain.config.describe import record_keys
from pretrain.config.errors import Problem
from pretrain.config.run import RunConfig

SAFE = (
    "run.name",
    "run.dir",
    "data.",
    "tokenizer.",
    "prepare.",
    "parallel.",
    "engine.",
    "optim.fused",
    "evaluation.",
    "checkpoint.",
    "tracking.",
    "cluster.",
    "profile.",
    "train.micro_batch_size",
    "train.max_steps",
    "train.max_tokens",
    "train.max_bad_steps",
    "train.max_minutes",
    "train.warn_epochs",
    "model.name",
)
"""Keys that may change: place, speed and length of the run, and its records. Data and tokenizer are compared with the
digests in the checkpoint instead: see DATA."""
BOUND = ("data.document_mask",)
"""Keys of SAFE sections that change the training nevertheless."""
SHAPE = frozenset(
    f"model.{name}"
    for name in (
        *("num_layers", "hidden_size", "num_heads", "num_query_groups", "head_dim", "ffn_hidden_size", "seq_length"),
        *("position", "norm", "qk_norm", "activation", "bias", "tie_embeddings", "vocab_size", "no_rope_every"),
        *("window", "full_attention_every"),
        *("experts.count", "experts.topk", "experts.ffn_hidden_size", "experts.shared_ffn_hidden_size"),
        *("experts.dense_layers", "experts.score", "experts.normalize", "experts.scale"),
    )
) | {"optim.name"}
"""Keys that change the names, shapes or meanings of saved tensors."""
DATA = frozenset({"data", "tokenizer"})
"""Names in run.accept_changes that are not keys. They accept other tokens than the checkpoint was trained on."""

NOT_OF_THE_RUN = frozenset({"run.accept_changes", "run.restart"})
"""Keys that apply to one start and are not a property of the run."""

REPLAYED_WITH = ("parallel.", "engine.", "train.micro_batch_size", "data.path", "data.cache.")
"""Keys that may differ from the run when `pretrain verify-resume` repeats its steps."""

Kind = Literal["safe", "unsafe", "shape"]


@dataclass(frozen=True)
class Change:
    """A key with its values, before and now."""

    key: str
    before: Any
    now: Any

    @property
    def kind(self) -> Kind:
        if self.key in SHAPE:
            return "shape"
        return "safe" if self.key.startswith(SAFE) and self.key not in BOUND else "unsafe"

    def __str__(self) -> str:
        return f"{self.key}: {written(self.before)} there, {written(self.now)} now"


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The keys that differ between two flat configurations, sorted by key."""
    return [
        Change(key, before.get(key), now.get(key))
        for key in sorted({*before, *now} - NOT_OF_THE_RUN)
        if before.get(key) != now.get(key)
    ]


def refusal(changes: Sequence[Change], accepted: Sequence[str]) -> tuple[str, list[str]] | None:
    """The lines that name the changes which forbid a resume, and hints; None if the run may resume."""
    shape = [change for change in changes if change.kind == "shape"]
    unsafe = [change for change in changes if change.kind == "unsafe" and change.key not in accepted]
    if not shape and not unsafe:
        return None
    lines = [
        f"\n  {change}" + ("; never accepted" if change in shape else "")
        for change in sorted((*shape, *unsafe), key=lambda change: change.key)
    ]
    if shape:
        hints = ["choose another run.name or run.dir: the tensors of the checkpoints do not fit this model"]
    else:
        hints = [
            f"to continue with the new values, add {to_accept(accepted, unsafe)}",
            "to start another run, choose another run.name or run.dir",
        ]
    return "".join(lines), hints


def to_accept(accepted: Sequence[str], more: Sequence[Change]) -> str:
    """The override that accepts `more` too."""
    return f"run.accept_changes=[{','.join(sorted({*accepted, *(change.key for change in more)}))}]"


def accept_problems(config: RunConfig) -> Iterator[Problem]:
    """Names in run.accept_changes that say nothing, or too much."""
    keys = set(record_keys(RunConfig))
    single = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    for name in config.run.accept_changes:
        if name in SHAPE:
            rule = f"{name} is part of the model's shape, a checkpoint's tensors fit no other"
            yield Problem("run.accept_changes", name, rule, "choose another run.name to train another model")
        elif name not in single | DATA:
            remedy = "name single keys, as in [optim.lr], or data, or tokenizer"
            yield Problem("run.accept_changes", name, "unknown key", remedy)
