"""The tasks and domains that the validations of a run score, made before the ranks meet."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.mixture import TrainingData
from pretrain.config.run import RunConfig
from pretrain.evaluation.domains import read_domains
from pretrain.evaluation.next_line import next_line_task, write_task
from pretrain.evaluation.requests import Asked, asked_of
from pretrain.evaluation.tasks import Task, read_tasks, refuse_doubled


@dataclass(frozen=True)
class RunTasks:
    """The requests of all tasks and domains."""

    asked: tuple[Asked, ...] = ()
    made: Task | None = None
    """The task made from the validation split."""

    @property
    def num_tokens(self) -> int:
        """Tokens that one validation reads for them at most, for its share of a time limit."""
        return sum(len(request.tokens) for asked in self.asked for request in asked.requests)

    def keep(self, run: Path) -> None:
        """Write the task that was made into the run folder. Only the main rank calls this."""
        if self.made is not None:
            write_task(run, self.made)


def open_tasks(config: RunConfig, dataset: TrainingData, validation: Mapping[str, PackedDataset]) -> RunTasks:
    """Raises UserError if a file or the validation split cannot be used."""
    wanted, key = config.evaluation, "evaluation.tasks"
    tasks = read_tasks(wanted.tasks, key)
    domains = read_domains(wanted.domains, config.data, wanted.domain_bytes)
    if not tasks and not domains and not wanted.next_lines:
        return RunTasks()
    tokenizer = dataset.parts[0].folder.tokenizer(dataset.manifest)
    made = next_line_task(validation, tokenizer, wanted.next_lines) if wanted.next_lines else None
    own = [*tasks, *([made] if made else [])]
    refuse_doubled([task.name for task in own], key)
    length = config.model.seq_length
    asked = [asked_of(task, tokenizer, length) for task in own]
    asked += [asked_of(task, tokenizer, length, "domain") for task in domains]
    return RunTasks(tuple(asked), made)
