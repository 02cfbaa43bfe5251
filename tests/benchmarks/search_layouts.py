"""Time of `pretrain plan --search` for 1,000 settings, in one process without torch.

    python -m tests.benchmarks.search_layouts [--ranks 64] [--hardware h100] [overrides]

Times are processor times, so other work on the machine hardly shows.
"""

import argparse
import sys
import time

from pretrain.config.load import load_run_config
from pretrain.planner.plan import GIB
from pretrain.planner.search import search
from pretrain.planner.search_table import best_of_each_layout
from pretrain.planner.time.hardware import load_hardware

RUN = ("model=llama_8b", "engine=zero1_bf16", "train.global_batch_size=512", "train.micro_batch_size=1")
VOCAB_SIZE = 128_256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--hardware", default="h100")
    given, overrides = parser.parse_known_args()
    config, hardware = load_run_config([*RUN, *overrides]), load_hardware(given.hardware)
    start = time.process_time()
    found = search(config, VOCAB_SIZE, given.ranks, hardware, int(hardware.memory_gib.value * GIB))
    seconds = time.process_time() - start
    legal = len(found.candidates) + found.too_large + found.slower
    assert "torch" not in sys.modules
    print(
        f"{config.model.name} on {given.ranks} ranks of {hardware.name}: {seconds:.1f} s for {legal:,} legal settings"
    )
    print(
        f"{len(found.candidates):,} of them timed, of {len(best_of_each_layout(found.candidates)):,} layouts that fit"
    )
    print(f"1,000 legal settings: {1000 * seconds / legal:.2f} s; 1,000 that fit and are timed:", end=" ")
    print(f"{1000 * seconds / max(1, len(found.candidates)):.2f} s")


if __name__ == "__main__":
    main()
