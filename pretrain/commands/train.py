"""`pretrain train`: its help, its options, and what each of them starts."""

import argparse
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.commands.arguments import CommandParser, add_overrides, add_ranks
from pretrain.distributed.grid import world_from_environment

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
    from pretrain.commands.training_run import EXIT_CODES, train

    config = load_run_config(given.overrides)
    outcome = train(config)
    if world_from_environment()[0] == 0:
        sys.stdout.write(after_train(Path(config.run.dir), outcome))
    return EXIT_CODES[outcome]
