"""The whole configuration of a run, and the sections too small for a file of their own."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.config import DataConfig, PrepareConfig, TokenizerConfig
from pretrain.config.cluster import ClusterConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optim import LrScheduleConfig, OptimConfig
from pretrain.config.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Which run this is and where it lives."""

    name: str
    """Name of the run."""
    dir: str
    """Run folder: config, logs, metrics, plots, checkpoints."""
    seed: int
    """Initial weights, data order and dropout all follow from it."""
    accept_changes: tuple[str, ...]
    """Keys that a resumed run takes with other values than it was made with, as in [optim.lr,train.global_batch_size];
    `data` and `tokenizer` for other data, `tokenizer` with a vocabulary of the same size only."""
    init_from: str | None = None
    """Run folder or checkpoint whose weights the run begins with, and with nothing else of it; null: random weights."""
    restart: bool = False
    """Whether a run whose checkpoints are all gone or damaged begins again at step 0, with what is there kept beside
    the new records and checkpoints. No effect while one checkpoint can be used."""


AUTO = -(2**31)
"""train.micro_batch_size=auto: a number that nobody types."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batch and length; data-parallel size and gradient accumulation are derived."""

    global_batch_size: int
    """Samples in one optimizer step, over all ranks."""
    micro_batch_size: int
    """Samples that one rank runs at once; auto: as many as fit in the device's memory, and no more than it gains
    by. What was chosen is saved with the run."""
    max_steps: int | None
    """Length in optimizer steps; give this or max_tokens."""
    max_tokens: int | None
    """Length in tokens."""
    max_bad_steps: int
    """Steps with a NaN or infinite loss or gradient that may be skipped before the run stops. In fp16 an infinite
    gradient counts only at the least loss scale, engine.loss_scale.minimum; above it the scale is lowered."""
    max_minutes: float | None = None
    """The run is to end within this time of training and validation, over all its attempts: once its pace is known, it
    is shortened if it would take longer, and the learning rate falls to its end in the time that is left; null: no
    limit. On a machine that is fast enough nothing changes."""
    warn_epochs: float | None = 4
    """Passes over a dataset beyond which the run warns that it repeats it too often; null: no warning. Muennighoff et
    al. 2023 found that up to about 4 are nearly as good as new text."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Loss on held-out text."""

    every_steps: int
    """Interval; 0: only at the end."""
    max_samples: int | None
    """Samples used at the interval, the first ones of the validation split; null: all."""
    final_max_samples: int | None
    """Samples used at the end of training; null: all."""
    micro_batch_size: int | None
    """Samples that one rank evaluates at once; null: as in training."""


@dataclass(frozen=True, kw_only=True)
class LocalCheckpointConfig:
    """Checkpoints in between, on each node's own disk."""

    path: str | None
    """Folder on every node, not shared; null: none."""
    every_steps: int
    """Interval in steps; 0: not by steps."""
    every_minutes: float
    """Interval by the clock; 0: not by the clock."""
    keep_last: int
    """Newest checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every_steps: int
    """Interval in steps; 0: not by steps."""
    every_minutes: float
    """Interval by the clock; 0: not by the clock."""
    keep_last: int
    """Newest checkpoints to keep."""
    keep_every: int
    """Checkpoints at multiples of this step are kept for ever; 0: none."""
    async_: bool
    """Whether training goes on while a checkpoint is written."""
    local: LocalCheckpointConfig
    mirror: str | None
    """URL of a folder that complete checkpoints are copied to; a run that finds a newer one there goes on from it. How
    often and how long a server is asked say data.cache.retries and data.cache.timeout_seconds."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the record of a run goes; metrics.jsonl in the run folder is always written."""

    wandb: Literal["offline", "online", "off"]
    """offline writes into the run folder, to be sent later with `wandb sync`."""
    wandb_project: str
    """Project that the run is filed under in wandb."""
    wandb_entity: str | None
    """User or team that owns the project; null: the account's own."""
    wandb_group: str | None
    """Name that several runs share, to be shown together in wandb; null: none."""
    tensorboard: bool
    """Whether event files for TensorBoard are written into the run folder."""
    log_every_steps: int
    """Interval of lines, JSONL records, wandb and TensorBoard points."""
    peak_tflops: float | None
    """Peak of one device for MFU; null: from the table of known chips, measured on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A look inside a few steps. Runs made before there was this section are read with its defaults."""

    steps: tuple[int, ...] | None = None
    """First and last step of which each rank writes a trace into RUN/profile/, as in [10,12]; null: none."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `prepare` and `train` can be told."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    prepare: PrepareConfig
    parallel: ParallelConfig
    engine: EngineConfig
    train: TrainConfig
    optim: OptimConfig
    lr_schedule: LrScheduleConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Everything that `generate` can be told."""

    run: str
    """Run folder whose checkpoint continues the prompt."""
    checkpoint: str
    """`latest`, or the name of a checkpoint such as step-00000500."""
    prompt: str
    """Text to continue."""
    max_new_tokens: int
    """Tokens to add at most; stops early at an end-of-document token."""
    temperature: float
    """0: always the likeliest token."""
    top_k: int | None
    """Choose among the k likeliest tokens."""
    top_p: float | None
    """Choose among the likeliest tokens that together hold this probability."""
    num_samples: int
    """Continuations to make."""
    parallel: ParallelConfig
    """How the model is cut over the ranks that generate; it need not be as in training."""
    seed: int
    """Chooses the tokens that are drawn."""
    output: str | None
    """Also write the text to this file."""
    device: Literal["auto", "cpu", "cuda"]
    """auto: a GPU if torch sees one."""
