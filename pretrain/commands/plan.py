"""`pretrain plan`: a parallel layout checked and its memory computed, without torch and without a GPU."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from pretrain.commands.arguments import CommandParser, add_overrides, add_ranks, positive, positive_number

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig
    from pretrain.planner.time.hardware import Hardware

HELP = """
Checks the run on a number of ranks. Prints every broken rule, or for each pipeline stage its layers and the memory of
its ranks, and its communication. With the name of a machine it also predicts the time of a step: by part, with tokens
per second, MFU, and the days and cost of the whole run; with --search it ranks all layouts that fit. Needs no GPU and
starts no process.

--dry-run also runs it: the program's own start-up and training step, for one rank of each distinct pipeline stage, with
tensors that have no values and groups of ranks that do not exist. Prints memory beside the plan, the traffic of each
group of ranks, and what the host waits for. It needs no GPU, 1 GiB of memory and a minute, whatever the model.

examples:
  pretrain plan --ranks 8 model=llama_8b parallel.tp=2 parallel.pp=2 engine=zero3_bf16
  pretrain plan --ranks 96 --gpu-memory 80 model=gpt3_175b parallel=gpt3_175b engine=zero1_bf16
  pretrain plan --ranks 64 --hardware h100 --search model=llama_8b engine=zero1_bf16 train.global_batch_size=512
  pretrain plan --ranks 64 --hardware h100 --price 2.5 model=llama_8b engine=zero3_bf16 train.global_batch_size=512
  pretrain plan --dry-run --ranks 1024 model=llama_70b parallel=llama_70b engine=zero3_bf16 train.global_batch_size=1024
"""


def add_options(parser: CommandParser) -> None:
    add_ranks(parser)
    help_ = "memory of one device; settings that are `auto` are chosen to fit in it"
    parser.add_argument("--gpu-memory", type=positive_number, metavar="GIB", help=help_)
    help_ = "machine whose time is predicted: a name in conf/hardware/, or a file of `pretrain bench --record`"
    parser.add_argument("--hardware", metavar="NAME", help=f"{help_}; default: cluster.hardware")
    parser.add_argument("--price", type=positive_number, metavar="PRICE", help="price of one GPU for an hour")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--dry-run", action="store_true", help="run one step of each distinct stage without computing")
    help_ = "rank the legal layouts that fit, fastest first; needs a machine"
    parser.add_argument("--search", action="store_true", help=help_)
    help_ = "layouts that --search prints (default: %(default)s; --json prints all)"
    parser.add_argument("--top", type=positive, default=10, metavar="N", help=help_)
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_run_config
    from pretrain.planner.plan import make_plan, plan
    from pretrain.planner.plan_json import plan_as_json
    from pretrain.planner.plan_time import chosen_hardware

    config = load_run_config(given.overrides)
    if given.dry_run:
        return _dry_run(config, given)
    hardware = chosen_hardware(config, given.hardware)
    if given.price is not None and hardware is None:
        raise UserError("--price needs a machine whose time is predicted", "add --hardware NAME")
    if given.search:
        sys.stdout.write(_search(config, given, hardware))
    elif given.json:
        made = make_plan(config, given.ranks, given.gpu_memory, hardware)
        sys.stdout.write(json.dumps(plan_as_json(made, given.price), indent=2) + "\n")
    else:
        sys.stdout.write(plan(config, given.ranks, given.gpu_memory, hardware, given.price))
    return 0


def _dry_run(config: "RunConfig", given: argparse.Namespace) -> int:
    from pretrain.planner.plan import ranks_or_environment
    from pretrain.pretend.dry_run import dry_run
    from pretrain.pretend.dry_run_text import as_json, as_text

    if given.search:
        raise UserError("--search and --dry-run are two different plans", "leave one of them out")
    for option in ("hardware", "price"):
        if getattr(given, option) is not None:
            raise UserError(f"--{option} predicts times, --dry-run does not", "leave one of them out")
    done = dry_run(config, ranks_or_environment(given.ranks), given.gpu_memory)
    sys.stdout.write(json.dumps(as_json(done), indent=2) + "\n" if given.json else as_text(done))
    return 0


def _search(config: "RunConfig", given: argparse.Namespace, hardware: "Hardware | None") -> str:
    from pretrain.planner.plan import GIB, ranks_or_environment, vocabulary
    from pretrain.planner.search import search
    from pretrain.planner.search_table import search_as_json, search_lines

    if hardware is None:
        raise UserError("--search needs a machine whose time is predicted", "add --hardware NAME")
    ranks, memory = ranks_or_environment(given.ranks), given.gpu_memory
    if memory is None and hardware.kind == "gpu":
        memory = hardware.memory_gib.value
    budget = None if memory is None else int(min(memory * GIB, 1 << 62))
    found = search(config, vocabulary(config)[0], ranks, hardware, budget)
    if given.json:
        return json.dumps(search_as_json(found, config), indent=2) + "\n"
    return "\n".join(search_lines(found, config, ranks, hardware, memory, given.top)) + "\n"
