"""`pretrain submit`: like `pretrain scale submit`, it calls the package `launch`."""

import argparse
from pathlib import Path

from pretrain.commands.arguments import CommandParser, add_overrides

HELP = """
Checks what can be checked on a login node (rules, memory, data, run folder), writes a batch script from the `cluster`
settings and submits it with sbatch. A run that cannot work is refused with the reason. The job trains in the run
folder, and resumes there after time limits and crashes. With -m every combination of values is one task of a job array,
with its own run folder and wandb run; sweeps/NAME/sweep.json lists them.

examples:
  pretrain submit cluster=gpu_8x80gb cluster.nodes=4 model=gpt3_1.3b --dry-run
  pretrain submit -m --name sizes model=gpt3_125m,gpt3_350m optim.lr=1e-4,3e-4
  pretrain submit --rerun sweeps/sizes
"""


def add_options(parser: CommandParser) -> None:
    parser.add_argument("-m", "--multirun", action="store_true", help="key=a,b: every combination, as a job array")
    help_ = "with -m: name of the sweep, its runs and their wandb group; default: sweep-N"
    parser.add_argument("--name", metavar="NAME", help=help_)
    help_ = "submit the members of a sweep that are not finished, waiting or running; overrides are added to theirs"
    parser.add_argument("--rerun", type=Path, metavar="SWEEP", help=help_)
    parser.add_argument("--dry-run", action="store_true", help="print the batch script; write and submit nothing")
    parser.add_argument("--no-submit", action="store_true", help="write the batch script, and do not submit it")
    add_overrides(parser)


def run(given: argparse.Namespace) -> int:
    from launch.slurm import submit

    return submit.run(given)
