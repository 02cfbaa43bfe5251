"""The result of a measurement, and the files it is saved in."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from data_pipeline.config_text import written
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.stream.mixture import TrainingData
from pretrain.bench.data import SYNTHETIC
from pretrain.bench.parts import PartTimes
from pretrain.bench.roofline import Row, limit
from pretrain.config.derived import tokens_per_step
from pretrain.config.errors import RunError
from pretrain.config.load import to_yaml
from pretrain.config.run import RunConfig
from pretrain.model.flops import TokenFlops
from pretrain.planner.time.versus import Versus
from pretrain.tracking.speed import DevicePeak

if TYPE_CHECKING:
    from pretrain.bench.ceilings import Ceilings

RESULT_FILE, TABLE_FILE, PLOT_FILE = "bench.json", "table.txt", "plot.png"
FORMAT, VERSION = "pretrain bench result", 1
LEAST_WARMUP, LEAST_STEPS = 20, 50

Result = Mapping[str, Any]


def new_folder(wanted: Path | None, name: str, *, beside: Path = Path("bench")) -> Path:
    """Make the folder of a result: the wanted one, which must be new or empty, else bench/NAME with a free number.

    It is made at once, so that a folder that cannot be created is reported before anything is measured.
    """
    if wanted is not None and wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise RunError(f"--out {wanted}: exists, and nothing is overwritten", "choose another folder")
    names = (beside / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    folder = wanted or next(folder for folder in names if not folder.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {folder}: cannot be created ({error.strerror})", "choose another folder") from None
    return folder


def step_figures(steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Median, p95 and all of the step times, and the mean time of each part."""
    seconds = [step["seconds_step"] for step in steps]
    split = {
        name: float(np.mean([step[f"seconds_{name}"] for step in steps]))
        for name in ("data", "forward_backward", "optimizer")
    }
    split["rest"] = max(0.0, float(np.mean(seconds)) - sum(split.values()))
    return {
        "step_seconds": {
            "median": float(np.median(seconds)),
            "p95": float(np.percentile(seconds, 95)),
            "mean": float(np.mean(seconds)),
            "all": seconds,
        },
        "split_seconds": split,
    }


def mfu(
    flops: TokenFlops, tokens_per_second: float, num_devices: int, peak: float | None, ceiling: float
) -> dict[str, dict[str, float | None]]:
    """Share of the device's peak and of its measured product ceiling, by each convention."""
    per_device = tokens_per_second / num_devices
    return {
        name.replace("six_n", "6n"): {
            "of_peak": per_device * value / peak if peak else None,
            "of_ceiling": per_device * value / ceiling,
        }
        for name, value in asdict(flops).items()
    }


def make_result(
    *,
    config: RunConfig,
    command: Sequence[str],
    environment: Mapping[str, Any],
    layout: Mapping[str, int],
    dataset: TrainingData,
    warmup: int,
    timed: Sequence[Mapping[str, float]],
    flops: TokenFlops,
    peak: DevicePeak | None,
    ceilings: "Ceilings",
    memory: Mapping[str, Any],
    profiled: PartTimes,
    rows: Sequence[Row],
    versus: Versus | None = None,
) -> dict[str, Any]:
    """All values of one measurement."""
    figures, tokens = step_figures(timed), tokens_per_step(config)
    tokens_per_second = tokens / figures["step_seconds"]["median"]
    shape, ceiling = ceilings.best
    tokenizer = dataset.manifest.tokenizer
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": config.model.name,
        "command": list(command),
        "environment": dict(environment),
        "config": yaml.safe_load(to_yaml(config)),
        "layout": dict(layout),
        "data": {
            "synthetic": tokenizer.kind == SYNTHETIC,
            "name": dataset.manifest.corpus.name,
            "digest": dataset.manifest.digest,
            "vocab_size": tokenizer.vocab_size,
        },
        "steps": {"warmup": warmup, "timed": len(timed)},
        "tokens_per_step": tokens,
        "tokens_per_second": tokens_per_second,
        **figures,
        "flops_per_token": asdict(flops),
        "peak": {"tflops": peak.flops / 1e12, "source": peak.source} if peak else None,
        "ceiling": {
            "tflops": ceiling / 1e12,
            "product": shape,
            "all_tflops": {name: rate / 1e12 for name, rate in ceilings.products.items()},
            "bandwidth_gb_per_second": ceilings.bandwidth / 1e9,
        },
        "mfu": mfu(flops, tokens_per_second, layout["world_size"], peak.flops if peak else None, ceiling),
        "memory": dict(memory),
        "roofline": [asdict(row) for row in rows],
        "profiled_step_seconds": profiled.step_seconds,
        "limit": limit(rows),
        "planned": versus.as_json() if versus else None,
        "notes": [
            *_notes(config, warmup, len(timed), peak, tokenizer.kind == SYNTHETIC),
            *([versus.line] if versus else []),
            *([] if rows else ["the parts of a step are unknown: no kernels (CUPTI) or no trace that can be read"]),
        ],
    }


def _notes(config: RunConfig, warmup: int, steps: int, peak: DevicePeak | None, synthetic: bool) -> list[str]:
    notes = []
    if warmup < LEAST_WARMUP or steps < LEAST_STEPS:
        least = f"{LEAST_WARMUP} and {LEAST_STEPS}"
        notes.append(f"only {warmup} warm-up and {steps} timed steps; a result worth keeping has at least {least}")
    if synthetic:
        notes.append("the data are pseudo-random tokens")
    if config.data.document_mask:
        notes.append("MFU and ideals count attention over whole samples, not documents")
    if peak is None:
        notes.append("the peak of this chip is not known; tracking.peak_tflops gives it")
    return notes


def save(folder: Path, result: Result, table: str, plot: bytes) -> None:
    """Write the three files, bench.json last."""
    write_durably(folder / TABLE_FILE, table.encode())
    write_durably(folder / PLOT_FILE, plot)
    write_durably(folder / RESULT_FILE, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def load(path: Path) -> dict[str, Any]:
    """Load a saved result from its file or folder; raises RunError for anything else."""
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        result = json.loads(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})", "give a bench.json or its folder") from None
    except ValueError:
        result = None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise RunError(f"{file}: is not a result of `pretrain bench`", "give a bench.json or its folder")
    if result.get("version") != VERSION:
        raise RunError(f"{file}: has format version {written(result.get('version'))}, but this program reads {VERSION}")
    return result
