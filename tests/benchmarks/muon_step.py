"""Time of a step with AdamW and with Muon, alternately, on the same batch.

python -m tests.benchmarks.muon_step [--steps 20] [--ranks 1] [overrides]
"""

import argparse
import statistics

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from tests.support.ranks import run_ranks
from tests.support.training import own_batch, start

OPTIMIZERS = ("adamw", "muon")


def step_seconds(here: Runtime, config: RunConfig, steps: int) -> tuple[float, float]:
    """Median seconds of a step's passes and of its update, the first step apart."""
    engine = start(here, config)
    batch = own_batch(here, config, 0)
    results = [engine.train_step(batch, 1e-3) for _ in range(steps + 1)][1:]
    return (
        statistics.median(result.seconds_forward_backward for result in results),
        statistics.median(result.seconds_optimizer for result in results),
    )


def main() -> None:
    from tests.benchmarks import muon_step  # by its name, so that the ranks can import it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    base = ["model=tiny_llama", "engine.device=cpu", "tracking=off", *given.overrides]
    totals: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(3):
        for name in OPTIMIZERS:
            config = load_run_config([f"optim={name}", *base])
            passes, update = run_ranks(muon_step.step_seconds, given.ranks, config, given.steps)[0]
            totals[name].append(passes + update)
            print(f"{name}: passes {1e3 * passes:.1f} ms, update {1e3 * update:.1f} ms", flush=True)
    best = {name: min(seconds) for name, seconds in totals.items()}
    print(f"a step with Muon takes {best['muon'] / best['adamw']:.3f} of one with AdamW")


if __name__ == "__main__":
    main()
