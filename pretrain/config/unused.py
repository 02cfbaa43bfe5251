"""Keys that other keys leave without effect: one that is set on the command line is reported, not silently ignored."""

from collections.abc import Collection, Iterator

from pretrain.config.run import RunConfig


def without_effect(config: RunConfig, typed: Collection[str]) -> Iterator[tuple[str, str]]:
    """Those of the typed keys that change nothing here, each with the reason."""
    for key in typed:
        for name, unused, reason in rules(config):
            if unused and (key == name or key.startswith(f"{name}.")):
                yield key, reason


def rules(config: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """(key or section, whether it has no effect, why)."""
    engine, recompute, offload = config.engine, config.engine.recompute, config.engine.offload
    parallel, schedule, tokenizer = config.parallel, config.lr_schedule.name, config.tokenizer
    yield "parallel.sp", parallel.sp and parallel.tp == 1, "it needs parallel.tp above 1"
    yield "model.rope_base", config.model.position != "rope", "it needs model.position=rope"
    yield "model.full_attention_every", config.model.window is None, "it needs model.window"
    yield "model.no_rope_every", config.model.position != "rope", "it needs model.position=rope"
    kind = config.model.rope_scaling.kind
    for name, kinds in _OF_SCALING.items():
        needs = " or ".join(f"model.rope_scaling.kind={each}" for each in kinds)
        yield f"model.rope_scaling.{name}", kind not in kinds, f"it needs {needs}"
    for name in _OF_EXPERTS:
        yield f"model.experts.{name}", config.model.experts.count == 0, "it needs model.experts.count above 0"
    yield "engine.loss_scale", engine.precision != "fp16", "it needs engine.precision=fp16"
    yield "engine.recompute.modules", recompute.granularity != "selective", "it needs granularity=selective"
    for name in ("method", "num_layers"):
        yield f"engine.recompute.{name}", recompute.granularity != "full", "it needs granularity=full"
    no_nvme = "nvme" not in (offload.optimizer, offload.params)
    yield "engine.offload.nvme_path", no_nvme, "it needs engine.offload.optimizer=nvme or engine.offload.params=nvme"
    yield "lr_schedule.decay_fraction", schedule != "wsd", "it needs lr_schedule=wsd"
    yield "data.near_dedup", config.data.dedup != "near", "it needs data.dedup=near"
    for name in ("kind", "sample_bytes"):
        yield f"tokenizer.{name}", tokenizer.path is not None, "tokenizer.path gives a tokenizer that is not trained"
    yield "tokenizer.eod", tokenizer.path is None, "it needs tokenizer.path"
    no_local = config.checkpoint.local.path is None
    for name in ("every_steps", "every_minutes", "keep_last"):
        yield f"checkpoint.local.{name}", no_local, "it needs checkpoint.local.path"
    yield "prepare.slurm", config.prepare.executor != "slurm", "it needs prepare.executor=slurm"
    yield "prepare.dask_scheduler", config.prepare.executor != "dask", "it needs prepare.executor=dask"
    for name in ("project", "entity", "group"):
        yield f"tracking.wandb_{name}", config.tracking.wandb == "off", "tracking.wandb is off"


_OF_EXPERTS = (
    *("topk", "ffn_hidden_size", "shared_ffn_hidden_size", "dense_layers", "score", "normalize", "scale"),
    *("sequence_loss", "z_loss", "bias_rate"),
)
_OF_SCALING = {
    "factor": ("llama3", "yarn"),
    "original_length": ("llama3", "yarn"),
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn",),
}
"""The kinds of scaling that use each of its keys."""
