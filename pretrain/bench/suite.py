"""Benchmarks several models, one after another, each in its own process: if one fails, the others still run."""

import contextlib
import fnmatch
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from data_pipeline.child_process import die_with_parent
from data_pipeline.storage.atomic_write import write_durably
from pretrain.bench.data import VOCAB_SIZE
from pretrain.bench.measure import BenchOptions
from pretrain.bench.result import TABLE_FILE, Result, load, new_folder
from pretrain.bench.table import columns, milliseconds, share
from pretrain.config.errors import RunError
from pretrain.config.redact import public_words
from pretrain.distributed.grid import world_from_environment


@dataclass(frozen=True)
class Suite:
    """Models, or variants of one model, to benchmark on pseudo-random tokens, the cheapest first."""

    models: Mapping[str, Sequence[str]]
    """The overrides of each row of the table, by its name."""
    vocab_size: int


def _on_one_gpu(model: str, micro_batch: int) -> tuple[str, ...]:
    batch = ("train.global_batch_size=32", f"train.micro_batch_size={micro_batch}")
    return (f"model={model}", "model.seq_length=2048", "engine=zero0_bf16", *batch)


# `pretrain plan --gpu-memory 139` says that these micro-batches fit in one H200; none has been measured against others.
_MICRO_BATCHES = {"gpt3_125m": 16, "gpt3_350m": 16, "gpt3_1.3b": 8, "gpt3_2.7b": 4, "gpt3_6.7b": 1}
_WIDER_HEADS = ("gpt3_125m", "gpt3_350m", "gpt3_2.7b")
"""The other models have a head dimension of 128 anyway."""

_WAYS = {"": ("engine.cross_entropy=plain",), "-fast": ("engine.cross_entropy=in_place", "engine.compile=layers")}
# The first of these is the reference for the others.
_ELEMENTWISE = ("engine.cross_entropy=in_place", "engine.compile=elementwise")
_MORE_WAYS = {
    "-elementwise": _ELEMENTWISE,
    "-flash": (*_ELEMENTWISE, "engine.attention=flash"),
    "-cudnn": (*_ELEMENTWISE, "engine.attention=cudnn"),
    "-zero1": (*_ELEMENTWISE, "engine.zero_stage=1"),
    "-zero3": (*_ELEMENTWISE, "engine.zero_stage=3"),
    "-documents": (*_ELEMENTWISE, "data.document_mask=true"),
}


def _single_gpu() -> Mapping[str, Sequence[str]]:
    """Every model plain and fast, some also fast with wider heads, and one of them in more ways."""
    wanted = {}
    for model, size in _MICRO_BATCHES.items():
        for way, overrides in (_WAYS | (_MORE_WAYS if model == "gpt3_1.3b" else {})).items():
            wanted[model + way] = (*_on_one_gpu(model, size), *overrides)
        if model in _WIDER_HEADS:
            wanted[f"{model}_head128-fast"] = (*_on_one_gpu(f"{model}_head128", size), *_WAYS["-fast"])
    return wanted


SUITES: Mapping[str, Suite] = {
    "single_gpu": Suite(_single_gpu(), VOCAB_SIZE),
    "tiny": Suite({model: (f"model={model}",) for model in ("tiny", "tiny_llama")}, 4096),
}

log = logging.getLogger(__name__)


def run_suite(
    name: str,
    overrides: Sequence[str],
    wanted: BenchOptions,
    *,
    only: Sequence[str] = (),
    row_minutes: float | None = None,
) -> tuple[str, bool]:
    """Measure every model of a suite with further overrides; returns the table, and whether any model worked.

    `only`: names in the table, or patterns of them; `row_minutes`: a model that takes longer is killed.
    """
    if name not in SUITES:
        raise RunError(f"suite={name}: unknown suite", f"choose {' or '.join(SUITES)}")
    if world_from_environment()[1] > 1:
        raise RunError(f"suite={name}: starts its own processes", "run it without torchrun, or bench single models")
    suite = SUITES[name]
    models = _chosen(name, suite.models, only)
    folder = new_folder(wanted.out, name)
    wanted = replace(wanted, vocab_size=wanted.vocab_size or suite.vocab_size)
    rows: list[tuple[str, ...]] = [
        ("model", "median ms", "p95 ms", "tokens/s", "MFU of peak", "of products", "GiB", "limited by")
    ]
    head = [f"suite {name}; MFU by 6N + 6Lhs; all figures in {folder}/MODEL/"]
    if overrides:  # the names of rows do not show them, although they may change the model
        head.append(f"every row with {' '.join(public_words(overrides))}")
    failed, table = 0, ""
    for number, (model, its) in enumerate(models.items(), 1):
        log.info("%s: %d of %d", model, number, len(models))
        fault = _run_one(folder / model, [*its, *overrides], wanted, row_minutes)
        rows.append(_failed(model, fault) if fault else _row(model, load(folder / model)))
        failed += fault is not None
        table = "\n".join([*head, "", *columns(rows, left=(0, len(rows[0]) - 1))]) + "\n"
        write_durably(folder / TABLE_FILE, table.encode())  # after each model: the next ones may take long
    return table, failed < len(models)


def _chosen(suite: str, models: Mapping[str, Sequence[str]], only: Sequence[str]) -> Mapping[str, Sequence[str]]:
    unknown = [wanted for wanted in only if not fnmatch.filter(models, wanted)]
    if unknown:
        raise RunError(f"--only {','.join(unknown)}: suite={suite} has no such row", f"choose from {', '.join(models)}")
    return {name: its for name, its in models.items() if not only or any(fnmatch.fnmatch(name, each) for each in only)}


def _run_one(folder: Path, overrides: Sequence[str], wanted: BenchOptions, minutes: float | None) -> str | None:
    """Why it failed, in one line; None if it worked."""
    words = [sys.executable, "-m", "pretrain", "bench", *overrides, f"--out={folder}"]
    # Pseudo-random tokens even if a dataset is prepared: a suite compares models and machines.
    words += [f"--warmup={wanted.warmup}", f"--steps={wanted.steps}", f"--vocab-size={wanted.vocab_size}"]
    log_file = folder.with_name(f"{folder.name}.log")
    with log_file.open("wb") as stream:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            preexec_fn=die_with_parent,  # Python has one thread here
        )
        try:
            code = process.wait(None if minutes is None else 60 * minutes)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    if code is None:
        shutil.rmtree(folder, ignore_errors=True)  # a failed bench leaves no folder either
        return f"took longer than --row-minutes {minutes:g}"
    if code == 0:
        return None
    if code < 0:
        return f"killed by signal {-code}" + (", as the kernel does if memory is short" if code == -9 else "")
    text = log_file.read_text(encoding="utf-8", errors="replace").strip()
    _, mark, message = text.rpartition("pretrain: error: ")
    return " ".join(message.split()) if mark else text[text.rfind("\n") + 1 :] or f"exit code {code}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and all that it started, such as compilers; does nothing if it has ended."""
    if process.poll() is None:
        for one in list(_stopped(psutil.Process(process.pid))):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _stopped(process: psutil.Process) -> Iterator[psutil.Process]:
    """A process and all below it. Each is stopped before its children are listed, so that it starts no more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        yield process
        for child in process.children():
            yield from _stopped(child)


def _row(model: str, result: Result) -> tuple[str, ...]:
    mfu, step = result["mfu"]["6n_6lhs"], result["step_seconds"]
    return (
        model,
        milliseconds(step["median"]),
        milliseconds(step["p95"]),
        f"{result['tokens_per_second']:,.0f}",
        share(mfu["of_peak"]),
        share(mfu["of_ceiling"]),
        f"{result['memory']['peak_gib']:.2f}",
        max(result["roofline"], key=lambda row: row["seconds"], default={"part": "-"})["part"],
    )


def _failed(model: str, fault: str) -> tuple[str, ...]:
    return (model, *["-"] * 6, f"failed: {fault}")
