"""`pretrain evaluate`: the figures of tasks for the checkpoints of a run, at any layout."""

import functools
import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.checkpoint.trained_model import TrainedModel, find_fitting_checkpoint, trained_engine, without_training
from pretrain.config.commands import EvaluateConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.load import read_run_config
from pretrain.distributed.grid import world_from_environment
from pretrain.evaluation.contamination import by_task, contaminated_items, training_splits
from pretrain.evaluation.results import Result, ResultsFile
from pretrain.evaluation.tasks import Task, read_tasks
from pretrain.run.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from data_pipeline.shards.reader import PackedDataset
    from pretrain.checkpoint.on_disk import Checkpoint
    from pretrain.evaluation.lm_eval_tasks import HarnessTasks
    from pretrain.evaluation.requests import Asked

Find = Callable[[str], "Checkpoint"]
Evaluation = Callable[[TrainedModel, str], list[Result]]
"""Scores the model; gets the name of the checkpoint."""

HARNESS = "lm_eval:"
"""Before the name of a task of lm-evaluation-harness."""
SHOWN = 10
"""Contaminated items of a task that the log names; the results have all."""

log = logging.getLogger(__name__)


def evaluate_run(config: EvaluateConfig) -> list[Result]:
    """The new results; rank 0 also writes them into the run folder, each as soon as it is known.

    Raises UserError before any work for what is wrong.
    """
    check_settings(config)
    tasks = read_tasks([path for path in config.tasks if not path.startswith(HARNESS)])
    harness = _harness([path.removeprefix(HARNESS) for path in config.tasks if path.startswith(HARNESS)], config)
    run = Path(config.run)
    trained = read_run_config(run / "config.yaml")
    tokenizer = tokenizer_of(run, trained.data)
    rank, world_size, _ = world_from_environment()
    used = without_training(trained, config.parallel, config.device, world_size)
    names = _checkpoints(run, config.checkpoint)
    file = ResultsFile(run, trained.run.name) if rank == 0 else None
    splits = training_splits(trained.data) if config.contamination and rank == 0 else []
    evaluations = _evaluations(config, tasks, harness, tokenizer, used.model.seq_length)
    find = functools.partial(find_fitting_checkpoint, run, config=trained, tokenizer=tokenizer)
    first = names[0] if len(names) == 1 else "latest"  # a live run deletes old ones
    results = []
    with trained_engine(run, used, tokenizer, functools.partial(find, first), seed=0) as model:
        for number, name in enumerate(names):
            checkpoint = _restored(model, name, find)
            if checkpoint is None:
                log.warning("%s is left out: a live run has deleted it", name)
                continue
            log.info("%s (%d of %d)", checkpoint.folder.name, number + 1, len(names))
            for evaluation in evaluations:
                found = list(evaluation(model, checkpoint.folder.name))
                results += found
                if file is not None:
                    file.add(found)
    if file is not None and splits:
        _look_for_items(tasks, splits, tokenizer, trained.data.decontaminate.ngram, file)
    return results


def _look_for_items(
    tasks: Sequence[Task], splits: "Sequence[PackedDataset]", tokenizer: Tokenizer, ngram: int, file: ResultsFile
) -> None:
    """Name the items that the training text contains, in the log and in the results."""
    found = by_task(contaminated_items(tasks, splits, tokenizer, ngram))
    for task in tasks:
        items, number = found.get(task.name, []), len(task.questions or task.texts)
        log.info("%s: %d of %d items are in the training text", task.name, len(items), number)
        for item in items[:SHOWN]:
            log.info("  %s", item)
    file.mark({(task.name, task.digest): tuple(found.get(task.name, ())) for task in tasks})


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


def _harness(names: Sequence[str], config: EvaluateConfig) -> "HarnessTasks | None":
    """Load the tasks of lm-evaluation-harness; None if `names` is empty."""
    if not names:
        return None
    if importlib.util.find_spec("lm_eval") is None:
        raise RunError(
            f"tasks of {HARNESS.removesuffix(':')} need lm-evaluation-harness, which is not installed",
            "pip install 'pretrain[eval]'",
        )
    from pretrain.evaluation.lm_eval_tasks import load_tasks

    return load_tasks(names, Path(config.lm_eval_path) if config.lm_eval_path else None)


def _checkpoints(run: Path, wanted: str) -> list[str]:
    if wanted != "all":
        return [wanted]
    from pretrain.checkpoint.on_disk import complete_ones

    names = [path.name for path in complete_ones(run / "checkpoints")]
    if not names:
        raise RunError(f"{run / 'checkpoints'}: no whole checkpoint yet", "train first, or wait for the first save")
    return names


def _restored(model: TrainedModel, name: str, find: "Find") -> "Checkpoint | None":
    """Load the weights of a checkpoint; None if it has been deleted."""
    from pretrain.checkpoint.collective import broadcast_result

    folder = model.store.folder
    try:
        return model.store.restore_weights(model.engine, None, functools.partial(find, name))[0]
    except RunError:
        is_gone = name != "latest" and not (folder / name).exists()
        if not broadcast_result("find", folder, model.groups.control, lambda: is_gone):
            raise
        return None


def _evaluations(
    config: EvaluateConfig,
    tasks: Sequence[Task],
    harness: "HarnessTasks | None",
    tokenizer: Tokenizer,
    seq_length: int,
) -> list["Evaluation"]:
    """The evaluations of each checkpoint, in order; raises ConfigError for a choice longer than the model sees."""
    from pretrain.evaluation.requests import asked_of

    asked = [asked_of(task, tokenizer, seq_length) for task in tasks]
    wanted: list[Evaluation] = [
        functools.partial(_own, each, task, config, seq_length) for each, task in zip(asked, tasks, strict=True)
    ]
    if harness is not None:
        wanted.append(functools.partial(_of_harness, harness, tokenizer, config, seq_length))
    return wanted


def _own(
    asked: "Asked", task: Task, config: EvaluateConfig, seq_length: int, model: TrainedModel, checkpoint: str
) -> list[Result]:
    from pretrain.evaluation.scoring import scoring_together
    from pretrain.evaluation.task_scorer import TaskScorer

    started = time.perf_counter()
    how = scoring_together(model.groups, seq_length=seq_length, batch_size=config.batch_size)
    found = TaskScorer([asked], how).figures(model.engine, asked)
    seconds = time.perf_counter() - started
    log.info(
        "%s: %s, %.1f s", task.name, ", ".join(f"{name} {each.value:.4f}" for name, each in found.items()), seconds
    )
    figures = {name: (each.value, each.error) for name, each in found.items()}
    return [Result(checkpoint, task.name, len(asked.counts), figures, seconds, task.digest)]


def _of_harness(
    tasks: "HarnessTasks",
    tokenizer: Tokenizer,
    config: EvaluateConfig,
    seq_length: int,
    model: TrainedModel,
    checkpoint: str,
) -> list[Result]:
    from pretrain.evaluation.lm_eval_model import RunModel

    started = time.perf_counter()
    found = tasks.figures(RunModel(model, tokenizer, seq_length=seq_length, batch_size=config.batch_size))
    seconds = (time.perf_counter() - started) / max(1, len(found))
    return [Result(checkpoint, HARNESS + name, items, figures, seconds) for name, (items, figures) in found.items()]
