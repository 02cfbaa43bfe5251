"""`pretrain train`, in reading order: configuration, run folder, data, process groups, model, engine, loop."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.mixture import TrainingData
from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.config.checks import check_run
from pretrain.config.run import RunConfig
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import world_from_environment
from pretrain.distributed.join import joined_ranks, layout_of
from pretrain.exit_codes import ExitCode
from pretrain.model.size import checkpoint_bytes
from pretrain.outcome import record
from pretrain.outcome.failure import Stage
from pretrain.planner.time.versus import check_hardware
from pretrain.resume.tolerance import facts_now
from pretrain.run.config_history import check_same_config, record_config
from pretrain.run.folder import check_space, log_to_file
from pretrain.run.length import check_length
from pretrain.run.lock import hold_run_folder
from pretrain.run.outcome import record_start
from pretrain.run.state import RunState
from pretrain.run.stop_signals import stop_on_signals
from pretrain.run.tokenizer import check_tokenizer, keep_tokenizer
from pretrain.tracking.metrics_file import records_of_all_attempts
from pretrain.tracking.pace import ValidationSizes, validation_sizes
from pretrain.tracking.plan_sink import PlanSink
from pretrain.tracking.provenance import describe_run, write_description
from pretrain.tracking.sinks import Sink, Spare, build_sinks
from pretrain.tracking.speed import device_peak
from pretrain.tracking.wandb_sink import check_wandb_login, forget_wandb_run
from pretrain.training.announce import announce_new_length, announce_outcome, announce_start, reason_of_end
from pretrain.training.data import check_enough_data, open_datasets, vocab_size_of
from pretrain.training.run_sinks import RunSinks
from pretrain.training.start import Start, find_initial_weights, load_start
from pretrain.training.tasks import RunTasks, open_tasks
from pretrain.training.time_limit import EarlierCuts, earlier_cuts, time_limit_of

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint
    from pretrain.training.assembly import Trainer

log = logging.getLogger(__name__)

EXIT_CODES = {"finished": ExitCode.DONE, "stopped": ExitCode.STOPPED}


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, checked before the ranks meet."""

    config: RunConfig
    folder: Path
    """The run folder."""
    dataset: TrainingData
    validation: Mapping[str, PackedDataset]
    tokenizer: TokenizerFiles | None = None
    """The files to keep in the run folder; rank 0 has them."""
    tasks: RunTasks = field(default_factory=RunTasks)
    """The requests that each validation makes of the model, besides the loss."""
    initial: "Checkpoint | None" = None
    """The checkpoint that run.init_from names; rank 0 has it."""


def train(config: RunConfig) -> str:
    """Train, or resume, the run of `config`; returns `finished` or `stopped` (saved, to be resumed).

    Raises UserError before any work if the configuration, the data or the run folder cannot be used.
    """
    rank, world_size, local_rank = world_from_environment()
    # Everything that can be refused is refused before the run folder is made; first what needs no slow import.
    inputs = check_inputs(config, rank, world_size)
    set_variables(layout_of(config))
    from pretrain.distributed.runtime import choose_device

    choose_device(config.engine.device, local_rank)
    with contextlib.ExitStack() as stack:
        check_ownership = stack.enter_context(hold_run_folder(inputs.folder)) if rank == 0 else lambda: None
        stop_requested = stack.enter_context(stop_on_signals())
        stack.enter_context(log_to_file(inputs.folder, rank))
        return run(inputs, check_ownership, stop_requested)


def check_inputs(config: RunConfig, rank: int, world_size: int) -> Inputs:
    """Open the data; raises UserError if the configuration, the data or the run folder cannot be used."""
    check_run(config, world_size)
    dataset, validation = open_datasets(config)
    folder = Path(config.run.dir)
    if not folder.exists() and config.checkpoint.mirror is None:  # else the length counts from a checkpoint's state
        check_length(config, RunState())
        check_enough_data(config, dataset, RunState())
    check_same_config(folder, config)
    tasks = open_tasks(config, dataset, validation)
    check_space(folder, checkpoint_bytes(config.model, config.optim, vocab_size_of(config, dataset)))
    if rank > 0:
        return Inputs(config, folder, dataset, validation, tasks=tasks)
    check_wandb_login(config.tracking)
    check_hardware(config)
    tokenizer, initial = check_tokenizer(dataset), find_initial_weights(config, dataset)
    return Inputs(config, folder, dataset, validation, tokenizer, tasks, initial)


def run(inputs: Inputs, check_ownership: Callable[[], None], stop_requested: Callable[[], bool]) -> str:
    """Build every part, load the newest checkpoint or the initial weights, and call the loop."""
    folder, dataset, validation = inputs.folder, inputs.dataset, inputs.validation
    # The sinks close last: the other ranks learn of a failure before a sink waits for the network.
    with (
        contextlib.ExitStack() as closing,
        joined_ranks(inputs.config, stop_requested=stop_requested) as (here, groups),
    ):
        # Not at the top: DeepSpeed and Megatron take seconds to import. A mistake in the configuration is reported
        # without them, and a rank that dies while it imports them is noticed only once the ranks have met.
        from pretrain.checkpoint.resume_point import find_resume_point
        from pretrain.distributed.link_check import check_links
        from pretrain.generation.sample import write_sample
        from pretrain.resume.on_start import begin_proof, has_validation
        from pretrain.training.assembly import build_trainer
        from pretrain.training.profiling import profiler_of
        from pretrain.training.saving import build_saver
        from pretrain.training.validation import build_evaluator, build_task_scorer

        check_links(inputs.config.engine.link_check, here, groups.control, folder)
        trainer = build_trainer(inputs.config, dataset, here, groups)
        config, length = trainer.config, trainer.length
        resume_point = find_resume_point(config, folder, trainer.engine, groups, here, check_ownership)
        start = load_start(trainer, resume_point, inputs.initial)
        is_validated = start.resumed is None or has_validation(folder, start.state.step, groups.control)
        if length.is_over(start.state) and is_validated:
            log.info("%s is finished after step %d; nothing to do", folder, start.state.step)
            return "finished"
        check_length(config, start.state)
        check_enough_data(config, dataset, start.state)

        peak = device_peak(config.tracking.peak_tflops, here.gpu_name, config.engine.precision)
        described = describe_run(config, dataset, list(validation.values()), groups.layout, peak)
        description = {**described, **start.origin}
        announce_start(config, description, dataset, start.state)
        now = facts_now(config, groups.layout, description)
        proof = begin_proof(folder, start.resumed, dataset, now, groups, seed=config.run.seed)
        sizes = validation_sizes([split.num_samples for split in validation.values()], config.evaluation)
        sinks, earlier = RunSinks(folder), EarlierCuts()
        if here.is_main:
            if start.resumed is not None:
                earlier = earlier_cuts(records_of_all_attempts(folder), start.state, length)
            if resume_point.restarted:
                forget_wandb_run(folder)
            sinks.open(open_records(trainer, inputs, start, description, sizes))
        closing.push(sinks.end)
        closing.callback(proof.close)
        tasks = build_task_scorer(trainer, inputs.tasks.asked)
        saver = build_saver(trainer, folder, resume_point, start.origin)
        state, sinks.outcome = trainer.train(
            start.state,
            clock=trainer.clock(peak),
            record=proof.watching(sinks.record),
            evaluate=build_evaluator(trainer, validation, sinks.show_validation, stop_requested, tasks),
            checkpoints=saver,
            stop_requested=stop_requested,
            profiler=profiler_of(config.profile.steps, folder, here.rank),
            time_limit=time_limit_of(length, earlier, sizes.final * config.model.seq_length + inputs.tasks.num_tokens),
            is_validated=is_validated,
        )
        closing.enter_context(here.stage(Stage.CLOSING))
        reason, made = reason_of_end(length, sinks.outcome, state), state.step - start.state.step
        sinks.end_record = record.success(EXIT_CODES[sinks.outcome], reason, step=state.step, steps_made=made)
        if here.is_main:
            # The last save is on the disk: from here on no supervisor takes the run for lost.
            record.write_for_launcher(sinks.end_record)
        saver.close()
        if sinks.outcome == "finished":
            first = next(iter(validation.values()))
            write_sample(config, folder, trainer.engine, first, control=groups.control, stop_requested=stop_requested)
    announce_outcome(config, dataset, state, sinks.outcome, sinks.losses)
    return sinks.outcome


def open_records(
    trainer: "Trainer", inputs: Inputs, start: Start, description: Mapping[str, Any], sizes: ValidationSizes
) -> list[Sink]:
    """Describe this attempt in the run folder, and open the sinks. Only the main rank calls this."""
    config, folder, state = trainer.config, inputs.folder, start.state
    if start.resumed is not None:
        announce_new_length(folder, config, state)
    record_config(folder, config, state.step, start.data_changes)
    if inputs.tokenizer is not None:
        keep_tokenizer(folder, inputs.tokenizer)
    inputs.tasks.keep(folder)
    write_description(folder, description)
    record_start(folder, state.step)
    planned = Spare("the planned step time", PlanSink(trainer.planned_step, state.step))
    return [*build_sinks(config, folder, state.step, trainer.length.end_step(state), description, sizes), planned]
