"""The one way to assemble a run: `train`, `verify-resume` and `bench` build a `Trainer`, which calls the loop."""

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.stream.mixture import TrainingData
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.engine.interface import Engine, Trainable
from pretrain.model.flops import TokenFlops, token_flops
from pretrain.planner.choice import machine_of, sized
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.versus import planned_step
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.speed import DevicePeak, StepClock
from pretrain.training.data import batches_from, vocab_size_of
from pretrain.training.loop import Checkpoints, Evaluator, NeverSave, Recorder, Values, run_loop
from pretrain.training.profiling import StepProfiler
from pretrain.training.time_limit import NO_LIMIT, TimeLimit


def build_trainer(config: RunConfig, dataset: TrainingData, here: Runtime, groups: ProcessGroups) -> "Trainer":
    """Build the model and its engine on this rank; called on all ranks together."""
    with megatron_imports():
        from pretrain.engine.build import build_engine, smallest_memory

    tokenizer = dataset.manifest.tokenizer
    memory = smallest_memory(here.device, groups.control)
    vocab_size = vocab_size_of(config, dataset)
    config = sized(config, vocab_size, here.world_size, memory, machine_of(config))
    engine = build_engine(config, vocab_size, groups, here.device, eod_id=tokenizer.eod_id)
    return Trainer(config, dataset, here, groups, engine, memory)


def never_evaluate(*, max_samples: int | None) -> Values:
    """An evaluator that measures nothing."""
    return {}


@dataclass(frozen=True)
class Trainer:
    """The parts that every run is made of."""

    config: RunConfig
    """`train.micro_batch_size` is a number here, never `auto`."""
    dataset: TrainingData
    here: Runtime
    groups: ProcessGroups
    engine: Engine
    memory: int
    """Bytes of memory that every rank has."""

    @property
    def vocab_size(self) -> int:
        return vocab_size_of(self.config, self.dataset)

    @property
    def length(self) -> RunLength:
        return RunLength.of(self.config)

    @property
    def token_flops(self) -> TokenFlops:
        return token_flops(self.config.model, self.vocab_size)

    @property
    def samples_counted_here(self) -> bool:
        """Whether this rank counts the samples of its batch: one of the ranks that share them does."""
        return self.groups.counts_samples

    def planned_step(self) -> StepTime | None:
        """The planned time of a step; None if the machine is not known."""
        return planned_step(self.config, self.vocab_size, self.here.world_size, self.memory, self.here.gpu_name)

    def clock(self, peak: DevicePeak | None = None) -> StepClock:
        """A speed meter; without the device's `peak` it reports no MFU."""
        return StepClock(self.token_flops, self.here.world_size, peak)

    def train(
        self,
        state: RunState,
        *,
        record: Recorder,
        clock: StepClock | None = None,
        engine: Trainable | None = None,
        evaluate: Evaluator = never_evaluate,
        checkpoints: Checkpoints | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        profiler: StepProfiler | None = None,
        time_limit: TimeLimit = NO_LIMIT,
        last_step: int | None = None,
        is_validated: bool = True,
    ) -> tuple[RunState, str]:
        """Run the training loop from `state`, whose tensors the engine holds; returns what the loop returns.

        Unless given, nothing is evaluated or saved, and the speed is measured without MFU. `engine` replaces the
        trainer's own, as a wrapper of it. The other arguments are those of `run_loop`.
        """
        batches = batches_from(state.position, self.config, self.dataset, self.groups, stop_requested)
        return run_loop(
            config=self.config,
            engine=engine or self.engine,
            batches=self.here.count_steps(batches, state.step),
            state=state,
            length=self.length,
            samples_counted_here=self.samples_counted_here,
            clock=clock or self.clock(),
            record=record,
            evaluate=evaluate,
            checkpoints=checkpoints or NeverSave(),
            stop_requested=stop_requested,
            control=self.groups.control,
            profiler=profiler,
            begin_step=self.here.begin_step,
            time_limit=time_limit,
            last_step=last_step,
            is_validated=is_validated,
        )
