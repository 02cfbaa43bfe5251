"""The configurations of commands that work on a finished run. They have no sections but that of the layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pretrain.config.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The configuration of `generate`."""

    run: str
    """Run folder whose checkpoint continues the prompt."""
    checkpoint: str
    """`latest`, or the name of a checkpoint such as step-00000500."""
    prompt: str
    """Text to continue."""
    prompts: str | None
    """File of texts to continue instead: .jsonl has an object with `prompt` on each line, other files a text."""
    max_new_tokens: int
    """Largest number of new tokens. Generation stops earlier at an end-of-document token."""
    temperature: float
    """Sampling temperature. 0: always the most likely token."""
    top_k: int | None
    """Sample from the k most likely tokens. null: from all tokens."""
    top_p: float | None
    """Sample from the most likely tokens whose probabilities add up to this. null: from all tokens."""
    num_samples: int
    """Number of continuations of each prompt."""
    batch_size: int
    """Number of continuations that are computed together."""
    stop: tuple[str, ...]
    """Texts at which a continuation ends. They are not part of it."""
    logprobs: int | None
    """Number of likeliest tokens whose log-probabilities are given at each token; needs format=json. null: none."""
    format: Literal["text", "json"]
    """json: an object on a line for each continuation, with prompt, text, tokens and the reason of its end."""
    stream: bool
    """Whether to print text as soon as it is certain. Only for a single continuation with format=text."""
    parallel: ParallelConfig
    """Split of the model over the ranks that generate. It may differ from the one used in training."""
    seed: int
    """Seed for sampling tokens. Continuation i, counted from 0, has seed + i, so that it is the same alone."""
    output: str | None
    """File that the text is written to as well. null: only print the text."""
    device: Literal["auto", "cpu", "cuda"]
    """Device to run on. auto: a GPU if PyTorch finds one, else the CPU."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The configuration of `export`."""

    run: str
    """Run folder whose checkpoint is exported."""
    into: str
    """Folder to make. It must not exist."""
    checkpoint: str
    """`latest`, or the name of a checkpoint such as step-00000500."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Type of the exported weights. A checkpoint keeps them as float32."""
    shard_bytes: int
    """Largest size of a weight file, unless one tensor is larger."""
    workers: int
    """Number of weight files that are written at the same time. Each needs memory for its largest tensor."""
    tokenizer: bool
    """Whether to write the tokenizer. false: only the weights and the model's configuration."""
    check: bool
    """Whether to compare the logits of the exported files with those of the run. It needs memory for both models, and
    the extra `export`."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """The configuration of `import`."""

    folder: str
    """Hugging Face folder: config.json, safetensors and the tokenizer."""
    run: str
    """Run folder to make. It must not exist."""
    tokenizer: str | None
    """Tokenizer file to use instead of that in the folder: a tokenizer.json or a SentencePiece .model."""
    eod: str | None
    """Special token that ends a document. null: the one that config.json names, or one with a usual name."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The configuration of `evaluate`."""

    run: str
    """Run folder whose checkpoints are evaluated."""
    checkpoint: str
    """`latest`, `all`, or the name of a checkpoint such as step-00000500."""
    tasks: tuple[str, ...]
    """Files of tasks: each line an object with context, choices and answer, or with text. `lm_eval:NAME` is a task of
    lm-evaluation-harness, which needs the extra `eval`."""
    lm_eval_path: str | None
    """Folder with task files of your own for lm-evaluation-harness; only these are then known. null: its own tasks."""
    batch_size: int
    """Number of continuations that a rank scores together."""
    contamination: bool
    """Whether to look for the items of the task files in the training text, by the rule of data.decontaminate. It reads
    the whole text once."""
    parallel: ParallelConfig
    """Split of the model over the ranks. It may differ from the one used in training."""
    device: Literal["auto", "cpu", "cuda"]
    """Device to run on. auto: a GPU if PyTorch finds one, else the CPU."""


COMMAND_RECORDS: Mapping[str, type] = {
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "import": ImportConfig,
}
"""By command, as conf/COMMAND.yaml has the default values."""
