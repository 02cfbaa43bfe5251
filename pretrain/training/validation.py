"""The evaluator of a run: the loss on the validation splits, left off if a rank is asked to stop."""

from collections.abc import Callable, Mapping, Sequence

from data_pipeline.shards.reader import PackedDataset
from pretrain.config.derived import evaluation_batch_size
from pretrain.evaluation.perplexity import evaluate
from pretrain.evaluation.requests import Asked
from pretrain.evaluation.scoring import scoring_together
from pretrain.evaluation.task_scorer import TaskScorer
from pretrain.outcome.failure import Stage
from pretrain.training.assembly import Trainer
from pretrain.training.loop import Evaluator, begin_agreement


def build_evaluator(
    trainer: Trainer,
    validation: Mapping[str, PackedDataset],
    show: Callable[[int, int], None],
    stop_requested: Callable[[], bool],
    tasks: TaskScorer | None = None,
) -> Evaluator:
    """An evaluator of these splits and tasks; `show` is called with the samples done and the samples in all."""
    config, groups = trainer.config, trainer.groups

    def ask_stop() -> Callable[[], bool]:
        agreement = begin_agreement(None, trainer.samples_counted_here, stop_requested(), 0, groups.control)
        return lambda: agreement.wait().stop

    def validate(*, max_samples: int | None) -> dict[str, float] | None:
        with trainer.here.stage(Stage.VALIDATION):
            values = evaluate(
                trainer.engine,
                validation,
                # As many micro-batches at once as there are pipeline stages, so that every stage has work.
                batch_size=evaluation_batch_size(config) * groups.layout.pp,
                rank=groups.replica,
                size=groups.layout.replicas,
                show=show,
                ask_stop=ask_stop,
                max_samples=max_samples,
            )
            if values is None or tasks is None:
                return values
            of_tasks = tasks.values(trainer.engine, ask_stop)
            return None if of_tasks is None else values | of_tasks

    return validate


def build_task_scorer(trainer: Trainer, asked: Sequence[Asked]) -> TaskScorer | None:
    """The scorer of a run's tasks and domains; None without any."""
    if not asked:
        return None
    config = trainer.config
    how = scoring_together(
        trainer.groups,
        seq_length=config.model.seq_length,
        batch_size=evaluation_batch_size(config),
        one_shape=config.engine.compile != "none",
    )
    return TaskScorer(asked, how)
