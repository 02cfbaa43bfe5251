"""`pretrain train`, in reading order: configuration, run folder, data, process groups, model, engine, loop."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError, error_line
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.mixture import TrainingData
from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.commands.arguments import CommandParser, add_overrides, add_ranks
from pretrain.config.changes import Change
from pretrain.config.checks import check_run
from pretrain.config.derived import evaluation_batch_size
from pretrain.config.run import RunConfig
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import ParallelLayout, world_from_environment
from pretrain.exit_codes import ExitCode
from pretrain.model.flops import token_flops
from pretrain.model.size import checkpoint_bytes
from pretrain.planner.micro_batch import with_micro_batch
from pretrain.resume.tolerance import facts_now
from pretrain.run.folder import check_same_config, check_space, hold_run_folder, log_to_file, record_config
from pretrain.run.length import RunLength, check_length
from pretrain.run.outcome import note_end, note_start
from pretrain.run.outcome_record import record_outcome
from pretrain.run.state import RunState
from pretrain.run.stop_signals import stop_on_signals
from pretrain.run.tokenizer import check_tokenizer, keep_tokenizer
from pretrain.tracking.close_sinks import close_within
from pretrain.tracking.metrics_file import records_of_all_attempts
from pretrain.tracking.pace import validation_sizes
from pretrain.tracking.provenance import describe_checkpoint, describe_run, write_description
from pretrain.tracking.sinks import ShowsProgress, Sink, Spare, build_sinks
from pretrain.tracking.speed import StepClock, device_peak
from pretrain.tracking.wandb_sink import check_wandb_login, forget_wandb_run
from pretrain.training.announce import announce_end, announce_new_length, announce_start
from pretrain.training.data import batches_from, check_enough_data, check_same_data, open_datasets
from pretrain.training.time_limit import Earlier, earlier_cuts, time_limit_of

if TYPE_CHECKING:
    from pretrain.checkpoint.store import Checkpoint, CheckpointStore
    from pretrain.engine.interface import Engine

log = logging.getLogger(__name__)

HELP = """
Trains on the dataset that `prepare` made with the same overrides. The run folder (run.dir) receives config, metrics,
curves, report.html and checkpoints. The same command, run again, resumes from the newest checkpoint. With -m every
combination of values trains here, one after the other, each in its own run folder; at the end, a table and a comparison
are written to sweeps/NAME. The same command then skips finished runs and resumes the others.

examples:
  pretrain train
  pretrain train model=tiny_llama train.max_steps=200 optim.lr=1e-3
  torchrun --nproc-per-node 2 -m pretrain train engine.zero_stage=3
  pretrain train --check --ranks 8 parallel.tp=2 parallel.pp=2
  pretrain train 'profile.steps=[10,12]'
  pretrain train -m --name rates optim.lr=1e-4,3e-4
"""

EXIT_CODES = {"finished": ExitCode.DONE, "stopped": ExitCode.STOPPED}
STOPPED_SECONDS, ENDED_SECONDS = 25.0, 150.0
"""For report and wandb to be closed. After most stops a SIGKILL follows, 30 s after the signal that asked for it; wandb
itself gives up after 120 s."""


def add_options(parser: CommandParser) -> None:
    parser.add_argument("--check", action="store_true", help="check whether this run is legal, and start nothing")
    help_ = "key=a,b: train every combination here, one after the other"
    parser.add_argument("-m", "--multirun", action="store_true", help=help_)
    help_ = "with -m: name of the sweep, its runs and their wandb group; default: sweep-N"
    parser.add_argument("--name", metavar="NAME", help=help_)
    add_ranks(parser)
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    from pretrain.commands.next_steps import after_train
    from pretrain.config.load import load_run_config

    if given.name is not None and not given.multirun:
        raise UserError(f"--name {given.name} names a sweep", "add -m, or set run.name=... for one run")
    if given.multirun:
        from pretrain.commands import multirun

        return multirun.run(given)
    if given.check:
        from pretrain.planner.plan import check

        sys.stdout.write(check(load_run_config(given.overrides), given.ranks))
        return 0
    if given.ranks is not None:
        raise UserError("--ranks only works with --check", "to train, set the number of ranks in torchrun or Slurm")
    config = load_run_config(given.overrides)
    outcome = train(config)
    if world_from_environment()[0] == 0:
        sys.stdout.write(after_train(Path(config.run.dir), outcome))
    return EXIT_CODES[outcome]


def train(config: RunConfig) -> str:
    """Train, or go on training, the run of `config`; returns `finished` or `stopped` (saved, to be continued).

    Raises UserError before any work where the configuration, the data or the run folder cannot be used.
    """
    rank, world_size, local_rank = world_from_environment()
    # All that can be refused is refused before the run folder is made, and what takes no heavy import first.
    dataset, validation = check_start(config, world_size)
    folder = Path(config.run.dir)
    initial = tokenizer = None
    if rank == 0:
        tokenizer = check_tokenizer(dataset)
        initial = open_initial(config, dataset)
    set_variables(ParallelLayout(world_size, config.parallel.tp, config.parallel.pp))
    from pretrain.distributed.runtime import choose_device

    choose_device(config.engine.device, local_rank)
    with contextlib.ExitStack() as stack:
        still_held = stack.enter_context(hold_run_folder(folder)) if rank == 0 else lambda: None
        stop_requested = stack.enter_context(stop_on_signals())
        stack.enter_context(log_to_file(folder, rank))
        return run_training(config, folder, dataset, validation, tokenizer, initial, still_held, stop_requested)


def check_start(config: RunConfig, world_size: int) -> tuple[TrainingData, dict[str, PackedDataset]]:
    """The data of a run that may start: raises UserError if the configuration, data or run folder cannot be used."""
    check_run(config, world_size)
    dataset, validation = open_datasets(config)
    folder = Path(config.run.dir)
    if not folder.exists() and config.checkpoint.mirror is None:  # else it counts where the run stands
        check_length(config, RunState())
        check_enough_data(config, dataset, RunState())
    check_same_config(folder, config)
    check_space(folder, checkpoint_bytes(config.model, dataset.manifest.tokenizer.vocab_size))
    if world_from_environment()[0] == 0:
        check_wandb_login(config.tracking)
    return dataset, validation


def run_training(
    config: RunConfig,
    folder: Path,
    dataset: TrainingData,
    validation: Mapping[str, PackedDataset],
    tokenizer: TokenizerFiles | None,
    initial: "Checkpoint | None",
    still_held: Callable[[], None],
    stop_requested: Callable[[], bool],
) -> str:
    """Build every part, restore the newest checkpoint (or the weights of `initial`), hand all to the loop.

    `tokenizer` is kept in the run folder; rank 0 has it.
    """
    from pretrain.distributed.runtime import runtime

    manifest = dataset.manifest
    vocab_size, length = manifest.tokenizer.vocab_size, RunLength.of(config)
    parallel = config.parallel
    layout = ParallelLayout(world_from_environment()[1], parallel.tp, parallel.pp)
    # The sinks are closed last: a failure is told to the other ranks before the network is asked for anything.
    with (
        contextlib.ExitStack() as closing,
        runtime(config.engine, layout=layout, stop_requested=stop_requested) as here,
    ):
        # Not at the top: DeepSpeed and Megatron take seconds to import. A typing mistake need not wait for them, and
        # a rank that dies while it imports them is noticed only once the ranks have met.
        from pretrain.checkpoint.init_from import load_initial, origin_of
        from pretrain.checkpoint.resume_point import find_beginning
        from pretrain.checkpoint.save_log import record_save
        from pretrain.checkpoint.saver import Saver
        from pretrain.distributed.groups import build_groups
        from pretrain.distributed.link_check import check_links
        from pretrain.distributed.vendor_imports import megatron_imports
        from pretrain.evaluation.perplexity import evaluate
        from pretrain.generation.sample import write_sample
        from pretrain.resume.on_start import begin_proof, has_validation
        from pretrain.training.loop import begin_agreement, run_loop
        from pretrain.training.profiling import profiler_of

        with megatron_imports():
            from pretrain.engine.build import build_engine, smallest_memory

        groups = build_groups(layout, config.run.seed, here.group_timeout_minutes, here.device, vp=parallel.vp)
        check_links(config.engine.link_check, here, groups.control, folder)
        memory = smallest_memory(here.device, groups.control)
        config = with_micro_batch(config, vocab_size, here.world_size, memory)
        engine = build_engine(config, vocab_size, groups, here.device, eod_id=manifest.tokenizer.eod_id)
        beginning = find_beginning(config, folder, engine, groups, here, still_held)
        changes: list[Change] = []
        if beginning.found is None:
            newest = None
            state, origin = (
                RunState(),
                load_initial(beginning.levels[0].store, engine, initial, finder(config, dataset)),
            )
        else:
            store, newest = beginning.found
            changes = check_same_data(newest.manifest, dataset, newest.folder, config.run.accept_changes)
            state, origin = restore(newest, store, engine), origin_of(newest)
        is_validated = newest is None or has_validation(folder, state.step, groups.control)
        if length.is_over(state) and is_validated:
            log.info("%s is finished after step %d; nothing to do", folder, state.step)
            return "finished"
        check_length(config, state)
        check_enough_data(config, dataset, state)

        peak = device_peak(config.tracking.peak_tflops, here.gpu_name, config.engine.precision)
        description = describe_run(config, dataset, list(validation.values()), layout, peak) | origin
        announce_start(config, description, dataset, state)
        now = facts_now(config, layout, description)
        proof = begin_proof(folder, newest, dataset, now, groups, seed=config.run.seed)
        sinks, earlier = Sinks(folder), Earlier()
        sizes = validation_sizes([split.num_samples for split in validation.values()], config.evaluation)
        if here.is_main:
            if newest is not None:
                earlier = earlier_cuts(records_of_all_attempts(folder), state, length)
                announce_new_length(folder, config, state)
            if beginning.restarted:
                forget_wandb_run(folder)
            record_config(folder, config, state.step, changes)
            if tokenizer is not None:
                keep_tokenizer(folder, tokenizer)
            write_description(folder, description)
            note_start(folder, state.step)
            sinks.open(build_sinks(config, folder, state.step, length.end_step(state), description, sizes))
        closing.push(sinks.end)
        closing.callback(proof.close)
        of_run = describe_checkpoint(config, manifest) | origin
        saver = Saver(
            engine,
            beginning.levels,
            describe=lambda at: {
                **of_run,
                "dataset_digest": dataset.digest_before(at.position),
                "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            in_background=config.checkpoint.async_,
            group=groups.saving,
            mirror=beginning.mirror,
            saved=partial(record_save, folder) if here.is_main else lambda step, at: None,
        )
        began_at = state.step
        samples_counted_here = groups.tp_rank == groups.pp_rank == 0

        def ask_stop() -> Callable[[], bool]:
            asked = begin_agreement(None, samples_counted_here, stop_requested(), 0, groups.control)
            return lambda: asked.wait().stop

        state, sinks.outcome = run_loop(
            config=config,
            engine=engine,
            batches=here.count_steps(batches_from(state.position, config, dataset, groups, stop_requested), state.step),
            state=state,
            length=length,
            samples_counted_here=samples_counted_here,
            clock=StepClock(token_flops(config.model, vocab_size), here.world_size, peak),
            record=proof.watching(sinks.record),
            evaluate=partial(
                evaluate,
                engine,
                validation,
                # As many micro-batches at once as there are stages, so that all have work.
                batch_size=evaluation_batch_size(config) * layout.pp,
                rank=groups.dp_rank,
                size=layout.dp,
                show=sinks.validating,
                ask_stop=ask_stop,
            ),
            checkpoints=saver,
            stop_requested=stop_requested,
            control=groups.control,
            profiler=profiler_of(config.profile.steps, folder, here.rank),
            begin_step=here.begin_step,
            time_limit=time_limit_of(length, earlier, sizes.final * config.model.seq_length),
            is_validated=is_validated,
        )
        if here.is_main:
            # The last save is on the disk: from here on no supervisor takes the run for lost.
            record_outcome(EXIT_CODES[sinks.outcome], step=state.step, steps_made=state.step - began_at)
        saver.close()
        why = "" if sinks.outcome == "finished" else "asked to stop by a signal; "
        early = ", shortened by train.max_minutes" if length.is_shortened(state) else ""
        sinks.reason = f"{why}trained to step {state.step:,} of {length.end_step(state):,}{early}"
        if sinks.outcome == "finished":
            first = next(iter(validation.values()))
            write_sample(config, folder, engine, first, control=groups.control, stop_requested=stop_requested)
    if state.skipped_samples:
        log.warning(
            "%s of %s samples did not count: the log names their shards (data.on_bad_shard=skip)",
            f"{state.skipped_samples:,}",
            f"{state.position:,}",
        )
    if sinks.outcome == "finished":
        announce_end(config, dataset, state, sinks.losses)
    if sinks.outcome == "stopped":
        what = "saved" if state.step else "with nothing to save"
        end = length.end_step(state)
        log.info("stopped after step %d of %d, %s; the same command goes on from there", state.step, end, what)
    return sinks.outcome


class Sinks:
    """The open sinks of this rank: none but on the main one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sinks: list[Sink] = []
        self.outcome, self.reason = "failed", ""
        self.losses: dict[str, float] = {}
        """The last ones of training and validation."""

    def open(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def record(self, kind: Any, step: int, values: Mapping[str, float | int | str]) -> None:
        if "loss" in values:
            self.losses[f"{kind} loss"] = float(values["loss"])
        for sink in self._sinks:
            sink.log(kind, step, values)

    def validating(self, done: int, total: int) -> None:
        for sink in self._sinks:
            if isinstance(sink, ShowsProgress):
                sink.validating(done, total)

    def end(self, kind: object, error: BaseException | None, trace: object) -> None:
        """For an exit stack: close the sinks, once the folder says how and why the run ended."""
        if self._sinks:
            reason = self.reason if error is None else error_line(error) or type(error).__name__
            note_end(self._folder, self.outcome, reason)
        for sink in self._sinks:
            if not isinstance(sink, Spare):
                sink.close(self.outcome)
        spare = {sink.name: partial(sink.close, self.outcome) for sink in self._sinks if isinstance(sink, Spare)}
        close_within(STOPPED_SECONDS if self.outcome == "stopped" else ENDED_SECONDS, spare)


def open_initial(config: RunConfig, dataset: TrainingData) -> "Checkpoint | None":
    """The checkpoint that run.init_from names, if the run has none of its own, checked against model and tokenizer."""
    if config.run.init_from is None:
        return None
    from pretrain.checkpoint.init_from import find_initial

    return find_initial(config.run.init_from, Path(config.run.dir), config.model, dataset.manifest.tokenizer)


def finder(config: RunConfig, dataset: TrainingData) -> "Callable[[], Checkpoint] | None":
    """What finds and checks that checkpoint whatever the run has of its own; None without run.init_from."""
    if config.run.init_from is None:
        return None
    from pretrain.checkpoint.init_from import find_fitting

    return partial(find_fitting, config.run.init_from, config.model, dataset.manifest.tokenizer)


def restore(newest: "Checkpoint", store: "CheckpointStore", engine: "Engine") -> RunState:
    """Load a checkpoint; returns where the run stands."""
    state = store.restore(newest, engine)
    log.info("resumed from %s: step %d, sample %d", newest.folder, state.step, state.position)
    return state
