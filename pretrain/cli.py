"""The `pretrain` command: one verb, Hydra overrides, an exit code of `pretrain.exit_codes`."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from data_pipeline.errors import UserError
from launch.slurm import submit
from pretrain.commands import bench, checkpoint, data, explain, status, verify_resume
from pretrain.commands.arguments import CommandParser, UsageError, positive, positive_number, run_action
from pretrain.config.errors import ConfigError, TrainingDiverged, code_of_refusal
from pretrain.distributed.torchrun import leave_reason
from pretrain.distributed.watchdog.failure import RankFailed, describe_error
from pretrain.exit_codes import ExitCode
from pretrain.run.outcome_record import record_outcome
from pretrain.std_streams import drop_output, is_refusal, nobody_reads, open_closed_streams
from pretrain.tracking.close_sinks import is_left_behind

SECONDS_FOR_RANK_0 = 15

log = logging.getLogger("pretrain")


@dataclass(frozen=True)
class Verb:
    """One thing that `pretrain` does."""

    summary: str
    details: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None] | None = None
    takes_overrides: bool = True
    """Else `add_options` asks for them where they may stand."""
    more_help: Callable[[], str] | None = None
    """Printed at the end of its help; called only then."""


def _prepare(given: argparse.Namespace) -> int:
    from pretrain.commands.next_steps import after_prepare
    from pretrain.commands.prepare import prepare
    from pretrain.config.load import load_run_config

    config = load_run_config(given.overrides)
    prepare(config)
    sys.stdout.write(after_prepare(config.data, given.overrides))
    return 0


def _train(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_run_config

    if given.name is not None and not given.multirun:
        raise ConfigError([f"--name {given.name} names a grid: give -m, or run.name=... for one run"])
    if given.multirun:
        from pretrain.commands import multirun

        return multirun.run(given)
    if given.check:
        from pretrain.planner.plan import check

        sys.stdout.write(check(load_run_config(given.overrides), given.ranks))
        return 0
    if given.ranks is not None:
        raise ConfigError(["--ranks is for --check: how many ranks train is the launcher's to say"])
    from pretrain.commands.next_steps import after_train
    from pretrain.commands.train import EXIT_CODES, train

    config = load_run_config(given.overrides)
    outcome = train(config)
    if _rank() == 0:
        sys.stdout.write(after_train(Path(config.run.dir), outcome))
    return EXIT_CODES[outcome]


def _plan(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_run_config
    from pretrain.planner.plan import plan

    sys.stdout.write(plan(load_run_config(given.overrides), given.ranks, given.gpu_memory))
    return 0


def _generate(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_generate_config
    from pretrain.generation.generate import generate

    generate(load_generate_config(given.overrides))
    return 0


def _show_config(given: argparse.Namespace) -> int:
    from pretrain.config.load import load_run_config, to_yaml

    text = to_yaml(load_run_config(given.overrides))
    sys.stdout.write(explain.described_yaml(text) if given.describe else text)
    return 0


def _show_config_options(parser: argparse.ArgumentParser) -> None:
    help_ = "with the meaning, type and default of each key, as comments"
    parser.add_argument("--describe", action="store_true", help=help_)


def _ranks_option(parser: argparse.ArgumentParser) -> None:
    help_ = "number of processes to plan for; default: WORLD_SIZE, or 1"
    parser.add_argument("--ranks", type=positive, metavar="N", help=help_)


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="say whether this run is legal, and start nothing")
    help_ = "key=a,b: train every combination here, one after the other"
    parser.add_argument("-m", "--multirun", action="store_true", help=help_)
    help_ = "with -m: name of the grid, its runs and their wandb group; default: sweep-N"
    parser.add_argument("--name", metavar="NAME", help=help_)
    _ranks_option(parser)


def _plan_options(parser: argparse.ArgumentParser) -> None:
    _ranks_option(parser)
    help_ = "memory of one device; the modes are chosen to fit in it"
    parser.add_argument("--gpu-memory", type=positive_number, metavar="GIB", help=help_)


VERBS = {
    "prepare": Verb(
        "text to tokenizer and packed WebDataset shards",
        """
        Reads text (.txt, folders of source files, JSON lines in .jsonl, .ndjson or .json, each also .gz or .zst), holds
        out a validation share, trains a SentencePiece tokenizer and writes packed shards with a manifest into
        data.path. Run again, it finishes what was interrupted and skips what is done.

        examples:
          pretrain prepare data.inputs=[my.txt,more.jsonl]
          pretrain prepare data=stdlib tokenizer=bpe_4k
          pretrain prepare data.inputs=[corpus/] data.name=mine model=gpt3_125m
        """,
        _prepare,
    ),
    "data": Verb(
        "look into prepared datasets, convert and join them",
        """
        inspect shows samples as text, verify compares every file, offset and token with the manifest and exits with 1
        where something differs, stats prints the figures as JSON, convert makes a dataset of Megatron-LM's .bin and
        .idx or the other way round, merge joins several into one, fetch brings a dataset at a URL into this node's
        cache before a run needs it. `pretrain data ACTION --help` explains each.

        examples:
          pretrain data inspect data/mine --samples 2
          pretrain data inspect data/mine --seed 1234 --first 80000
          pretrain data verify data/mine
          pretrain data stats data/mine
          pretrain data convert old/corpus_text_document data/mine --to packed tokenizer.path=tokenizer.json
          pretrain data convert data/mine data/mine-megatron --to megatron
          pretrain data merge data/mine data/yours --into data/ours
          pretrain data fetch s3://bucket/mine data.cache.dir=/scratch/cache
        """,
        run_action,
        data.add_options,
        takes_overrides=False,
    ),
    "train": Verb(
        "train a model, or go on training it",
        """
        Trains on the dataset that `prepare` made with the same overrides. The run folder (run.dir) receives config,
        metrics, curves, report.html and checkpoints; the same command run again goes on from the newest checkpoint.
        With -m every combination of values trains here, one after the other, in a run folder of its own; the end is a
        table and a comparison in sweeps/NAME. The same command skips finished runs and resumes the others.

        examples:
          pretrain train
          pretrain train model=tiny_llama train.max_steps=200 optim.lr=1e-3
          torchrun --nproc-per-node 2 -m pretrain train engine.zero_stage=3
          pretrain train --check --ranks 8 parallel.tp=2 parallel.pp=2
          pretrain train profile.steps=[10,12]
          pretrain train -m --name rates optim.lr=1e-4,3e-4
        """,
        _train,
        _train_options,
    ),
    "submit": Verb(
        "train on a Slurm cluster: one run, or a grid of them",
        """
        Checks what a login node can check (rules, memory, data, run folder), writes a batch script from the settings
        in `cluster` and gives it to sbatch; what cannot run is refused with its reason. The job trains, and goes on
        after time limits and crashes, in the run folder. With -m every combination of values is one task of a job
        array with a run folder and a wandb run of its own, listed in sweeps/NAME/sweep.json.

        examples:
          pretrain submit cluster=gpu_8x80gb cluster.nodes=4 model=gpt3_1.3b --dry-run
          pretrain submit -m --name sizes model=gpt3_125m,gpt3_350m optim.lr=1e-4,3e-4
          pretrain submit --rerun sweeps/sizes
        """,
        submit.run,
        submit.add_options,
    ),
    "plan": Verb(
        "check a layout and its memory, without starting it",
        """
        Checks the run on a number of ranks and tells every broken rule, or prints what each pipeline stage holds, the
        memory of its ranks, and what waiting and traffic the layout costs. It needs no GPU and starts no process.

        examples:
          pretrain plan --ranks 8 model=llama_8b parallel.tp=2 parallel.pp=2 engine=zero3_bf16
          pretrain plan --ranks 96 --gpu-memory 80 model=gpt3_175b parallel=gpt3_175b engine=zero1_bf16
        """,
        _plan,
        _plan_options,
    ),
    "bench": Verb(
        "measure a training step: speed, MFU, memory, and what limits it",
        """
        Takes training steps of the configured model, with its loader, optimizer and clipping, on the GPU or CPU that
        is there, and prints and saves (bench/MODEL/: bench.json, table.txt, plot.png, trace.json.gz) tokens/s, MFU
        against the chip's peak and against the matrix products measured in the same run, peak memory, and the parts
        of a step beside what they would take at the measured limits. Where data.path is not prepared, it reads
        pseudo-random tokens. suite= measures several models, each in a process of its own; compare sets two results
        side by side.

        examples:
          pretrain bench model=gpt3_1.3b engine=zero0_bf16 train.micro_batch_size=8
          pretrain bench suite=single_gpu
          pretrain bench suite=single_gpu --only 'gpt3_1.3b*' --row-minutes 5
          pretrain bench suite=tiny --warmup 2 --steps 5
          pretrain bench compare bench/tiny/bench.json bench/tiny-2/bench.json
        """,
        bench.run,
        bench.add_options,
    ),
    "status": Verb(
        "show runs: jobs, steps, speed, time to go, how they ended",
        """
        Of the given run folders, or of all in runs/. What Slurm knows of the jobs is asked where squeue is there. A
        table on a terminal, plain lines elsewhere.

        examples:
          pretrain status
          pretrain status runs/quickstart
          pretrain status runs/sweep/* --json
        """,
        status.run,
        status.add_options,
        takes_overrides=False,
    ),
    "checkpoint": Verb(
        "list, inspect, verify, compare and prune checkpoints",
        """
        list says what is there and which one the next resume takes, inspect what a checkpoint is and what each tensor
        holds, verify compares every file and chunk with what they must be, diff compares two checkpoints of whatever
        layouts, prune deletes old ones. Nothing in them is executed. `pretrain checkpoint ACTION --help` explains each.

        examples:
          pretrain checkpoint list runs/quickstart
          pretrain checkpoint inspect runs/quickstart --match 'weight/*norm*'
          pretrain checkpoint verify runs/quickstart
          pretrain checkpoint diff runs/one/checkpoints/step-00000500 runs/other
          pretrain checkpoint prune runs/quickstart --keep-last 2 --keep-every 1000 --dry-run
        """,
        run_action,
        checkpoint.add_options,
        takes_overrides=False,
    ),
    "generate": Verb(
        "continue a prompt with a trained model",
        """
        Loads the newest checkpoint of a run and prints text that follows the prompt.

        examples:
          pretrain generate run=runs/quickstart prompt="def main("
          pretrain generate run=runs/quickstart prompt="import os" temperature=0 max_new_tokens=64
        """,
        _generate,
        more_help=explain.keys_of_generate,
    ),
    "verify-resume": Verb(
        "recompute recorded steps from a checkpoint and compare",
        """
        Repeats the steps that were recorded after the newest checkpoint that has some, in memory: the run folder is
        only read, and the run may be training. Batch hash, loss, gradient norm, learning rate and loss scale are
        compared with metrics.jsonl. Says `exact`, or `equal within 1e-x because ...`, or where they part (exit code 1).
        Layout and engine may be others: parallel. and engine. keys, train.micro_batch_size; data that has moved is
        found by data.path.

        examples:
          pretrain verify-resume runs/quickstart
          pretrain verify-resume runs/quickstart --checkpoint 800 --steps 50 --json
          torchrun --nproc-per-node 2 -m pretrain verify-resume runs/quickstart parallel.tp=2 engine.zero_stage=1
        """,
        verify_resume.run,
        verify_resume.add_options,
    ),
    "show-config": Verb(
        "print the whole configuration that overrides give",
        """
        Prints every key of `prepare` and `train` with its value.

        examples:
          pretrain show-config experiment=quickstart optim.lr=1e-3
          pretrain show-config --describe
        """,
        _show_config,
        _show_config_options,
    ),
    "explain": Verb(
        "describe keys of the configuration: meaning, type, default",
        """
        Without a key it lists the sections, with a section its keys and the files that can be chosen for it.

        examples:
          pretrain explain
          pretrain explain optim
          pretrain explain optim.lr model.position
        """,
        explain.run,
        explain.add_options,
        takes_overrides=False,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: never returns."""
    open_closed_streams()
    try:
        given = _parse(arguments)
    except UsageError as error:
        sys.stderr.write(error.usage if _rank() == 0 else "")
        _tell(error)
        sys.exit(ExitCode.MISTAKE)
    _set_up_logging()
    code = _run(VERBS[given.verb], given)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (ExitCode.FAILED, ExitCode.DIVERGED, ExitCode.REFUSED) or is_left_behind():
        # Past the interpreter's clean-up: threads of a broken process group may wait there for ranks that are gone,
        # and those of a sink for a network that is.
        os._exit(code)
    sys.exit(code)


def _run(verb: Verb, given: argparse.Namespace) -> int:
    try:
        code = verb.run(given)
        sys.stdout.flush()
        return code
    except UserError as error:
        code = code_of_refusal(error)
        record_outcome(code, message=str(error))
        _tell(error)
        return code
    except TrainingDiverged as error:
        record_outcome(ExitCode.DIVERGED, step=error.step, message=f"training diverged: {error}")
        log.error("training diverged: %s", error)
        leave_reason(f"training diverged: {error}")
        return ExitCode.DIVERGED
    except RankFailed as error:
        log.error("%s", error)
        leave_reason(str(error).splitlines()[-1])
        return ExitCode.FAILED
    except KeyboardInterrupt:
        log.error("interrupted")
        return ExitCode.FAILED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            drop_output()
            return ExitCode.NOT_READ
        if is_refusal(error):
            record_outcome(ExitCode.REFUSED, message=f"rank {_rank()} failed: {error}")
            log.error("rank %d failed: %s", _rank(), error)
            drop_output()  # it may be what could not be written
        else:
            log.exception("rank %d failed", _rank())
        leave_reason(f"rank {_rank()} failed: {describe_error(error)}")
        if _from_launcher("WORLD_SIZE") > 1:
            from pretrain.distributed.watchdog.watchdog import announce

            announce(error)
        return ExitCode.REFUSED if is_refusal(error) else ExitCode.FAILED


def _tell(error: UserError) -> None:
    """All ranks find the same mistake and one says so: the first to end has the launcher end the others, which must not
    happen to rank 0 before it spoke. A rank that is still there later was alone with its mistake."""
    rank = _rank()
    if rank:
        time.sleep(SECONDS_FOR_RANK_0)
    text = f"pretrain: error: {f'rank {rank}: ' if rank else ''}{error}"
    if not leave_reason(text):
        sys.stderr.write(f"{text}\n")


def _rank() -> int:
    return _from_launcher("RANK")


def _from_launcher(name: str) -> int:
    """0 where there is none; what is no number is told by who works with it."""
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0


def _set_up_logging() -> None:
    """Rank 0 speaks to people; the others only of errors."""
    handler = logging.StreamHandler()
    prefix = "" if _rank() == 0 else f"[rank {_rank()}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO if _rank() == 0 else logging.ERROR)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if given.verb is None:
        sys.stderr.write(parser.format_help())
        sys.exit(ExitCode.MISTAKE)
    unknown = [word for word in rest if word.startswith("-")]
    if not hasattr(given, "overrides"):
        unknown = rest
    if unknown:
        parser.error(_no_option(unknown, given))
    if rest:
        given.overrides += rest  # argparse takes only the overrides before the first option
    return given


def _listed(verbs: Mapping[str, Verb]) -> str:
    """A line for each: argparse would break them."""
    width = max(map(len, verbs))
    return "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in verbs.items())


def _no_option(words: Sequence[str], given: argparse.Namespace) -> str:
    """What to do about words that `given.verb` does not take."""
    key, _, value = words[0].lstrip("-").partition("=")
    if hasattr(given, "overrides") and "." in key:
        return f"{words[0]}: a key has no dashes before it; write {key}={value or 'VALUE'}"
    return f"unrecognized arguments: {' '.join(words)}; `pretrain {given.verb} --help` lists what it takes"


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="pretrain",
        usage="pretrain VERB [options] [key=value ...]",
        description=f"Pretrain GPT-style language models from raw text.\n\ncommands:\n{_listed(VERBS)}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(prog="pretrain", dest="verb", metavar="VERB", help=argparse.SUPPRESS)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            epilog=dedent(verb.details).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.more_help = verb.more_help
        if verb.add_options is not None:
            verb.add_options(sub)
        if verb.takes_overrides:
            sub.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides of the configuration")
    return parser


_EPILOG = "\n".join(
    [
        "`pretrain VERB --help` explains a verb; `pretrain explain` describes the keys.",
        "",
        "exit codes:",
        *(f"  {code.value:<4} {code.meaning}" for code in ExitCode),
    ]
)
