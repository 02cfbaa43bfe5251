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
    """The name, folder and seed of a run, and how it resumes."""

    name: str
    """Name of the run, shown in logs and reports."""
    dir: str
    """Run folder, which holds the configuration, logs, metrics, plots and checkpoints."""
    seed: int
    """Seed of the initial weights, the data order and dropout."""
    accept_changes: tuple[str, ...]
    """Keys that may differ from the values the run was started with when it resumes, as in
    [optim.lr,train.global_batch_size]. `data` allows other data. `tokenizer` allows another tokenizer whose vocabulary
    has the same size."""
    init_from: str | None
    """Run folder, checkpoint or Hugging Face folder to load initial weights from. Only the weights are loaded. null:
    random weights."""
    branch_from: str | None = None
    """Checkpoint of another run that this run continues, as in runs/NAME/checkpoints/step-00000500: its weights,
    optimizer, position in the data and steps. Only the schedule and the length may differ. null: a run of its own."""
    restart: bool
    """Whether to start again at step 0 if every checkpoint is missing or damaged. The old records and checkpoints are
    kept beside the new ones. It has no effect while one checkpoint can be used."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batch size and length of training. Data-parallel size and gradient accumulation are derived."""

    global_batch_size: int
    """Number of samples in one optimizer step, over all ranks."""
    micro_batch_size: int | Literal["auto"]
    """Number of samples that one rank runs at once. auto: the largest number that fits in memory, but no larger than
    needed to saturate the device. The chosen number is saved with the run."""
    max_steps: int | None
    """Length of the run in optimizer steps. Set this or max_tokens."""
    max_tokens: int | None
    """Length of the run in tokens. Set this or max_steps."""
    max_bad_steps: int
    """Number of steps with a NaN or infinite loss or gradient that are skipped before the run stops. In fp16 an
    infinite gradient counts only at the smallest loss scale, engine.loss_scale.minimum. Above it the scale is
    lowered."""
    max_minutes: float | None
    """Time limit for training and validation, summed over all attempts. If the run would take longer, it is shortened
    as soon as its speed is known, and the learning rate decays to its end in the time that is left. null: no limit. A
    run that is fast enough is not changed."""
    warn_epochs: float | None
    """Number of passes over a dataset above which the run warns about repeated data. null: no warning. Muennighoff et
    al. 2023 found that up to about 4 passes are nearly as good as new text."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Validation loss on held-out text."""

    every_steps: int
    """Number of steps between validations. 0: only at the end of training."""
    max_samples: int | None
    """Number of samples used for a validation during training, from the start of the validation split. null: all."""
    final_max_samples: int | None
    """Number of samples used for the validation at the end of training. null: all."""
    micro_batch_size: int | None
    """Number of samples that one rank evaluates at once. null: train.micro_batch_size."""
    tasks: tuple[str, ...] = ()
    """Files of tasks that each validation scores too, as `pretrain evaluate` does: questions with choices, or texts."""
    next_lines: int = 0
    """Number of questions of a task that is made from the validation split: which of four lines comes next? They are
    written to next_line.jsonl in the run folder. Text without lines of 8 to 100 characters gives none. 0: no such
    task."""
    domains: dict[str, str] = field(default_factory=dict)
    """Names and files of held-out texts whose bits per byte each validation measures. A file is of any format that
    `prepare` reads. evaluation.domains.NAME=FILE adds one."""
    domain_bytes: int = 250_000
    """Size of the text of each domain that is read, from its start."""


@dataclass(frozen=True, kw_only=True)
class LocalCheckpointConfig:
    """Additional, more frequent checkpoints on each node's own disk."""

    path: str | None
    """Folder that exists on every node and is not shared. null: no local checkpoints."""
    every_steps: int
    """Number of steps between local checkpoints. 0: do not save by steps."""
    every_minutes: float
    """Minutes between local checkpoints. 0: do not save by time."""
    keep_last: int
    """Number of newest local checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which of them are kept."""

    every_steps: int
    """Number of steps between checkpoints. 0: do not save by steps."""
    every_minutes: float
    """Minutes between checkpoints. 0: do not save by time."""
    keep_last: int
    """Number of newest checkpoints to keep."""
    keep_every: int
    """Checkpoints at multiples of this step are never deleted. 0: all but the newest are deleted."""
    keep_steps: tuple[int, ...] = ()
    """Steps after which a checkpoint is saved that is never deleted, as in [400,800]."""
    async_: bool
    """Whether training continues while a checkpoint is written."""
    local: LocalCheckpointConfig
    mirror: str | None
    """URL of a folder that complete checkpoints are copied to. A run that finds a newer checkpoint there resumes from
    it. data.cache.retries and data.cache.timeout_seconds apply to its server."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Destinations of metrics. metrics.jsonl in the run folder is always written."""

    wandb: Literal["offline", "online", "off"]
    """Whether metrics go to Weights & Biases. offline: written into the run folder, to be uploaded later with `wandb
    sync`."""
    wandb_project: str
    """Name of the wandb project."""
    wandb_entity: str | None
    """User or team that owns the wandb project. null: the account's default."""
    wandb_group: str | None
    """Name of a wandb group that shows several runs together. null: no group."""
    labels: dict[str, str | int | float] = field(default_factory=dict)
    """Names and values that describe the run, shown in the configuration of its wandb run. tracking.labels.NAME=value
    adds one."""
    tensorboard: bool
    """Whether event files for TensorBoard are written into the run folder."""
    log_every_steps: int
    """Number of steps between log lines and between points in metrics.jsonl, wandb and TensorBoard."""
    peak_tflops: float | None
    """Peak TFLOP/s of one device, used for MFU. null: taken from a table of known chips, and measured on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Traces of a few steps by the PyTorch profiler."""

    steps: tuple[int, ...] | None = None
    """First and last step of which each rank writes a trace into RUN/profile/, as in [10,12]. null: no trace."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of `prepare` and `train`."""

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
