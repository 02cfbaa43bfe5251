"""The tolerance for recomputed steps: what differs between two attempts decides how much their results may differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.config.records import flatten
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.run.config_history import CONFIG_FILE
from pretrain.tracking.provenance import DESCRIPTION_FILE

Facts = Mapping[str, object]
"""Layout, settings, versions and device of an attempt, by name; what was not recorded is absent."""

_WITHOUT_EFFECT = (
    "run.name",
    "run.dir",
    "run.init_from",
    "run.branch_from",
    "run.accept_changes",
    "run.restart",
    "run.on_config_change",
    "model.name",
    "data.",
    "tokenizer.",
    "prepare.",
    "evaluation.",
    "checkpoint.",
    "tracking.",
    "train.max_bad_steps",
    "train.warn_epochs",
    "engine.timeout_minutes",
    "engine.init_timeout_minutes",
    "engine.offload.nvme_path",
    "engine.link_check",
)
"""Settings that do not change the numbers of a step. Data is compared by the hashes of its batches."""
_OF_ROUNDING = (
    "layout",
    "parallel.",
    "engine.",
    "optim.fused",
    "train.micro_batch_size",
    "torch",
    "deepspeed",
    "megatron-core",
    "device",
    "threads",
    "source revision",
)
"""If one of these differs, sums may be rounded differently. All other settings change what is summed."""
_OF_DROPOUT = ("layout", "parallel.", "train.micro_batch_size", "device", "engine.device", "torch")
"""If one of these differs, dropout draws other random numbers."""

# Relative, per step since the checkpoint. Layouts in tests/ranks differ by up to 1e-6 in fp32 and 1e-2 in 16 bits.
_ROUNDING_32, _ROUNDING_16 = 1e-5, 1e-2
_AT_MOST = 0.25


@dataclass(frozen=True)
class Tolerance:
    """Why recomputed steps may differ from recorded ones, and by how much."""

    because: tuple[str, ...] = ()
    per_step: float = 0.0
    at_least: float = 0.0

    def allowed(self, steps: int) -> float:
        """The allowed relative difference of a loss or gradient norm, `steps` after the checkpoint."""
        return min(_AT_MOST, max(self.at_least, self.per_step * steps))


def tolerance_for(origins: Sequence[Facts], now: Facts, *, on_gpu: bool) -> Tolerance:
    """The tolerance between the attempts that saved and recorded (`origins`) and the one that recomputes (`now`)."""
    different = {
        key: f"{key} {then[key]} then, {now[key]} now"
        for then in origins
        for key in sorted(then.keys() & now.keys())
        if then[key] != now[key]
    }
    because = list(different.values())
    rounding = on_gpu or any(key.startswith(_OF_ROUNDING) for key in different)
    restarted = _has_dropout(now) and any(key.startswith(_OF_DROPOUT) for key in different)
    if restarted:
        because.append("the random states of dropout started again")
    if on_gpu:
        because.append("a GPU sums in no fixed order")
    if not rounding:
        return Tolerance(tuple(because))
    in_32 = {facts.get("engine.precision") for facts in (*origins, now)} == {"fp32"}
    if any(facts.get("optim.name") == "muon" and facts.get("optim.muon.precision") == "bf16" for facts in origins):
        because.append("Muon iterates in bf16 (optim.muon.precision)")
        in_32 = False
    return Tolerance(tuple(because), _ROUNDING_32 if in_32 else _ROUNDING_16, _AT_MOST if restarted else 0.0)


def facts_now(config: RunConfig, layout: ParallelLayout, environment: Mapping[str, Any]) -> Facts:
    """The facts of this process; `environment` is what `describe_environment` returns."""
    return _facts(asdict(config), asdict(layout), environment)


def facts_of_checkpoint(manifest: Mapping[str, Any]) -> Facts:
    """The facts of the attempt that saved a checkpoint."""
    return _facts(manifest.get("config", {}), manifest["layout"], manifest.get("environment", {}))


def facts_of_last_attempt(run_dir: Path) -> Facts:
    """Layout, settings and versions of the last attempt in a run folder; empty if its files cannot be read."""
    try:
        description = json.loads((run_dir / DESCRIPTION_FILE).read_bytes())
        config = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        there = description["layout"]
        layout = {"world_size": there["world_size"], "tp": there["tensor_parallel"], "pp": there["pipeline_parallel"]}
        return _facts(config, layout, description)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def _facts(config: Mapping[str, Any], layout: Mapping[str, int], environment: Mapping[str, Any]) -> Facts:
    # Through JSON, like the recorded facts, which turns tuples into lists.
    settings = flatten(json.loads(json.dumps(config)))
    versions = environment.get("versions", {})
    return {
        "layout": f"{layout['world_size']} process(es) as tp{layout['tp']} pp{layout['pp']}",
        **{
            key: value
            for key, value in settings.items()
            if key == "data.document_mask" or not key.startswith(_WITHOUT_EFFECT)
        },
        **{name: versions[name] for name in ("torch", "deepspeed", "megatron-core") if name in versions},
        **{name: environment[name] for name in ("device", "threads") if name in environment},
        **({"source revision": environment["git"]["revision"][:12]} if environment.get("git") else {}),
    }


def _has_dropout(facts: Facts) -> bool:
    return any(facts.get(f"model.{kind}_dropout") for kind in ("hidden", "attention"))
