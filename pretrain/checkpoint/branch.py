"""A branch: a new run that continues a checkpoint of another run, with its optimizer, its data and its steps.

The schedule and the length may differ. Under a schedule that is constant before its decay (WSD, Hu et al. 2024), runs
of several lengths so share one trunk, and each result equals that of a whole run, bit for bit.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import TokenizerRecord
from pretrain.checkpoint.init_from import find_fitting
from pretrain.checkpoint.manifest import step_of
from pretrain.checkpoint.on_disk import Checkpoint, complete_ones
from pretrain.config.changes import changes_between
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.load import run_config_of
from pretrain.config.records import flatten
from pretrain.config.run import RunConfig

FREE = ("lr_schedule.", "run.init_from", "run.branch_from")
"""Keys of the result in which a branch may differ from its trunk."""


def find_trunk(config: RunConfig, tokenizer: TokenizerRecord) -> Checkpoint | None:
    """The checkpoint that run.branch_from names; None without that key, or if the run has a checkpoint of its own.

    Only the sizes of its files are checked: all ranks together read them later. Raises ConfigError if there is no such
    checkpoint, or it is of a run that this one cannot continue.
    """
    named = config.run.branch_from
    if named is None or complete_ones(Path(config.run.dir) / "checkpoints"):
        return None
    path = Path(named)
    if step_of(path) is None or path.parent.name != "checkpoints":
        rule = "is not the folder of a checkpoint"
        raise ConfigError([Problem("run.branch_from", named, rule, "give RUN/checkpoints/step-00000500")])
    if config.run.init_from is not None:
        both = (config.run.init_from, named)
        raise ConfigError(
            [Problem("run.init_from, run.branch_from", both, "give one of them", "set the other to null")]
        )
    try:
        found = find_fitting(named, config.model, tokenizer)
    except ConfigError as error:
        raise ConfigError([_for_branch(problem) for problem in error.problems]) from None
    before = asdict(run_config_of(found.manifest["config"], named))
    changes = changes_between(flatten(before), flatten(asdict(config)))
    changed = [each for each in changes if each.kind != "safe" and not each.key.startswith(FREE)]
    if changed:
        lines = "".join(f"\n  {each}" for each in changed)
        rule, hint = f"its run trained with other settings:{lines}", "set the same; run.init_from takes weights alone"
        raise ConfigError([Problem("run.branch_from", named, rule, hint)])
    return found


def origin_of_branch(trunk: Checkpoint) -> dict[str, Any]:
    """The origin of a branch, for the records."""
    place = {"checkpoint": str(trunk.folder), "step": trunk.step, "save_id": trunk.manifest.get("save_id")}
    return {"init_from": trunk.manifest.get("init_from"), "branch_from": place}


def _for_branch(problem: Problem | str) -> Problem | str:
    """The problem in the words of this key."""
    if isinstance(problem, str):
        return problem.replace("run.init_from", "run.branch_from")
    key, hint = (text.replace("run.init_from", "run.branch_from") for text in (problem.key, problem.hint))
    return Problem(key, problem.value, problem.rule, hint)
