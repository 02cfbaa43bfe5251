"""`pretrain evaluate`: the figures of tasks for the checkpoints of a run, at any layout."""

import functools
import importlib.util
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer
from pretrain.checkpoint.trained_model import TrainedModel, find_fitting_checkpoint, trained_engine, without_training
from pretrain.config.commands import EvaluateConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.load import read_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import world_from_environment
from pretrain.evaluation.plot import draw_figures
from pretrain.evaluation.tasks import Task, read_tasks
from pretrain.run.tokenizer import tokenizer_of

RESULTS, PLOT = "evaluation.json", "evaluation.png"
HARNESS = "lm_eval:"
"""Before the name of a task of lm-evaluation-harness."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The figures of one task for one checkpoint."""

    checkpoint: str
    task: str
    items: int
    figures: dict[str, tuple[float, float]]
    """Value and standard error by name."""
    seconds: float


def evaluate_run(config: EvaluateConfig) -> list[Result]:
    """All results; rank 0 also writes them into the run folder. Raises UserError before any work for what is wrong."""
    check_settings(config)
    tasks = read_tasks([path for path in config.tasks if not path.startswith(HARNESS)])
    harness = [path.removeprefix(HARNESS) for path in config.tasks if path.startswith(HARNESS)]
    if harness:
        _require_harness()
    run = Path(config.run)
    trained = read_run_config(run / "config.yaml")
    tokenizer = tokenizer_of(run, trained.data)
    rank, world_size, _ = world_from_environment()
    used = without_training(trained, config.parallel, config.device, world_size)
    wanted = _checkpoints(run, config.checkpoint)
    finders = [functools.partial(find_fitting_checkpoint, run, name, trained, tokenizer) for name in wanted]
    results = []
    with trained_engine(run, used, tokenizer, finders[0], seed=0) as model:
        for number, find in enumerate(finders):
            checkpoint, _ = model.store.restore_weights(model.engine, find() if rank == 0 else None, find)
            log.info("%s (%d of %d)", checkpoint.folder.name, number + 1, len(finders))
            for task in tasks:
                results.append(_result(model, task, tokenizer, used.model.seq_length, config, checkpoint.folder.name))
            if harness:
                results += _harness_results(model, harness, tokenizer, used, config, checkpoint.folder.name)
    if rank == 0:
        described = [asdict(result) | {"figures": _for_json(result.figures)} for result in results]
        write_durably(run / RESULTS, (json.dumps(described, indent=1) + "\n").encode())
        if len(finders) > 1:
            write_durably(run / PLOT, draw_figures(trained.run.name, curves_of(results)))
    return results


def check_settings(config: EvaluateConfig) -> None:
    problems = []
    if not config.tasks:
        problems.append(
            Problem("tasks", [], "names no file", "give files of questions or texts, as in tasks=[a.jsonl]")
        )
    if config.batch_size < 1:
        problems.append(Problem("batch_size", config.batch_size, "must be at least 1"))
    if problems:
        raise ConfigError(problems)


def _checkpoints(run: Path, wanted: str) -> list[str]:
    if wanted != "all":
        return [wanted]
    from pretrain.checkpoint.on_disk import complete_ones

    names = [path.name for path in complete_ones(run / "checkpoints")]
    if not names:
        raise RunError(f"{run / 'checkpoints'}: no whole checkpoint yet", "train first, or wait for the first save")
    return names


def _result(
    model: TrainedModel, task: Task, tokenizer: Tokenizer, seq_length: int, config: EvaluateConfig, checkpoint: str
) -> Result:
    from pretrain.evaluation.task_scorer import TaskScorer

    started = time.perf_counter()
    scorer = TaskScorer([task], tokenizer, seq_length=seq_length, batch_size=config.batch_size, groups=model.groups)
    found = scorer.figures(model.engine)[task.name]
    seconds = time.perf_counter() - started
    shown = ", ".join(f"{name} {each.value:.4f}" for name, each in found.items())
    log.info("%s: %s, %.1f s", task.name, shown, seconds)
    figures = {name: (each.value, each.error) for name, each in found.items()}
    return Result(checkpoint, task.name, len(task.questions) or len(task.texts), figures, seconds)


def _harness_results(
    model: TrainedModel,
    names: Sequence[str],
    tokenizer: Tokenizer,
    used: RunConfig,
    config: EvaluateConfig,
    checkpoint: str,
) -> list[Result]:
    from pretrain.evaluation.lm_eval_model import RunModel, harness_figures

    started = time.perf_counter()
    own = RunModel(model, tokenizer, seq_length=used.model.seq_length, batch_size=config.batch_size)
    found = harness_figures(own, names, Path(config.lm_eval_path) if config.lm_eval_path else None)
    seconds = (time.perf_counter() - started) / len(found)
    return [Result(checkpoint, HARNESS + name, items, figures, seconds) for name, (items, figures) in found.items()]


def _require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise RunError(
            f"tasks of {HARNESS.removesuffix(':')} need lm-evaluation-harness, which is not installed",
            "pip install 'pretrain[eval]'",
        )


def _for_json(figures: Mapping[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    """Value and standard error by name; null instead of NaN, which JSON does not have."""
    return {name: [None if math.isnan(each) else each for each in pair] for name, pair in figures.items()}


def curves_of(results: Sequence[Result]) -> dict[str, dict[str, list[tuple[int, float, float]]]]:
    """Step, value and standard error of each checkpoint, by figure and task."""
    curves: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for each in results:
        step = int(each.checkpoint.rpartition("-")[2])
        for figure, (value, error) in each.figures.items():
            curves.setdefault(figure, {}).setdefault(each.task, []).append((step, value, error))
    return curves


def lines_of(results: Sequence[Result]) -> list[list[str]]:
    """The rows of a table: checkpoint, task, items, figure, value with its standard error."""
    return [
        [each.checkpoint, each.task, f"{each.items:,}", name, f"{value:.4f}", f"{error:.4f}"]
        for each in results
        for name, (value, error) in each.figures.items()
    ]
