"""train, resume, generate, verify-resume and bench on the pretend GPU write what they write on the CPU."""

import contextlib
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pretrain.checkpoint.on_disk import read_checkpoint
from pretrain.config.load import load_generate_config, load_run_config
from pretrain.pretend.device import ledger
from pretrain.pretend.machine import on_pretend_gpu
from tests.support.corpus import make_texts, prepare_synthetic, tokenizer_config, write_jsonl
from tests.support.ranks import run_ranks
from tests.support.runs import DATA, SHAPE, TRAINING, train_records, validation_records

STEPS, STOPPED_AFTER = 6, 3
SETTINGS = (
    *(word for word in (*DATA, *SHAPE, *TRAINING) if not word.startswith("engine.device")),
    f"train.max_steps={STEPS}",
    "train.global_batch_size=4",
    "evaluation.every_steps=2",
    "evaluation.max_samples=6",
    "evaluation.final_max_samples=10",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=9",
)
IN_A_STEP = {"item in gradients.global_norm": 1, "tolist in zero.train_step": 1}
IN_A_FIRST_STEP = {"copy from host in rotary._whole": 1}
AT_STAGE_3 = {
    "synchronize in stage3.independent_gradient_partition_epilogue": 1,
    "synchronize in stage3.__reduce_and_partition_ipg_grads": 1,
    "synchronize in partition_parameters.wait": 1,
}
BESIDE_A_STEP = {"copy to host in files._with_storage_of_its_own"}
"""Waits of the thread that writes a checkpoint during a step."""


@dataclass(frozen=True)
class Case:
    ranks: int
    settings: tuple[str, ...]
    packing: str
    shape: tuple[str, ...] = ()
    """Overrides that say how the ranks of `generate` split the model."""


CASES = {
    "gpt": Case(1, ("engine=zero1_bf16", "model.hidden_dropout=0.0"), "stream"),
    "llama": Case(
        2,
        (
            "model=tiny_llama",
            "model.num_query_groups=1",
            "engine.zero_stage=3",
            "parallel.tp=2",
            "parallel.sp=true",
            "data.document_mask=true",
            "engine.cross_entropy=in_place",
        ),
        "best_fit",
        ("parallel.tp=2",),
    ),
}
PLACES: dict[str, Callable[[], AbstractContextManager[Any]]] = {"cpu": contextlib.nullcontext, "gpu": on_pretend_gpu}


def import_commands() -> None:
    """In the process that ranks are forked from: what commands import late."""


def train(folder: Path, words: tuple[str, ...], stop_after: int | None) -> tuple[str, list[Counter[str]]]:
    """The outcome, and how often the host waited in each step."""
    os.chdir(folder)
    from pretrain.commands import training_run as command
    from pretrain.engine.zero import ZeroEngine
    from pretrain.tracking import report

    report.write_report = lambda *args, **options: None  # whose plots take longer than the steps

    waits, step = [], ZeroEngine.train_step

    def watched(engine: ZeroEngine, tokens: Tensor, lr: float, mask: Tensor | None = None) -> Any:
        before = Counter(ledger.waits)
        result = step(engine, tokens, lr, mask)
        waits.append(ledger.waits - before)
        return result

    ZeroEngine.train_step = watched  # type: ignore[method-assign]
    if stop_after is not None:

        @contextlib.contextmanager
        def stop_on_signals() -> Iterator[Callable[[], bool]]:
            yield lambda: len(waits) >= stop_after

        command.stop_on_signals = stop_on_signals
    return command.train(load_run_config([*words, "engine.device=auto"])), waits


def generate(folder: Path, words: tuple[str, ...]) -> str:
    os.chdir(folder)
    from pretrain.generation.generate import generate

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        generate(load_generate_config(["run=runs/run", "prompt=The", "max_new_tokens=6", "temperature=0", *words]))
    return printed.getvalue()


def verify(folder: Path) -> tuple[str, list[int]]:
    os.chdir(folder)
    from pretrain.resume.replay import verify_resume

    report = verify_resume(Path("runs/run"))
    return report.comparison.kind, [pair.step for pair in report.pairs]


def bench(folder: Path, words: tuple[str, ...]) -> dict[str, Any] | None:
    os.chdir(folder)
    from pretrain.bench import ceilings
    from pretrain.bench.measure import BenchOptions, bench

    ceilings.SECONDS, ceilings._COPIED_BYTES = 0.01, 2**20
    measured = bench(load_run_config([*words, "engine.device=auto"]), BenchOptions(warmup=1, steps=2))
    return None if measured is None else measured[1]


@dataclass(frozen=True)
class Done:
    """The results of the commands."""

    folder: Path
    outcomes: list[str]
    waits: list[list[Counter[str]]]
    """For each start of the run: the waits of each step."""
    text: str
    verified: tuple[str, list[int]] | None
    measured: dict[str, Any] | None


@pytest.fixture(scope="module", params=CASES)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """A case on the CPU and on the pretend GPU."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(60))
    tokenizer = tokenizer_config(vocab_size=300)
    prepare_synthetic(folder / "data", [corpus], seq_length=32, packing=case.packing, tokenizer=tokenizer)
    words = (*SETTINGS, f"data.path={folder / 'data'}", f"data.packing={case.packing}", "run.name=run", *case.settings)
    found = {}
    for name, around in PLACES.items():
        place = folder / name
        place.mkdir()

        def on_ranks(command: Callable[..., Any], *args: Any, around: Any = around, place: Path = place) -> list[Any]:
            return run_ranks(command, case.ranks, place, *args, around=around, joined=False, warm=import_commands)

        starts = [on_ranks(train, words, STOPPED_AFTER), on_ranks(train, words, None)]
        found[name] = Done(
            place,
            [start[0][0] for start in starts],
            [start[0][1] for start in starts],
            on_ranks(generate, case.shape)[0],
            on_ranks(verify)[0] if name == "gpu" else None,
            on_ranks(bench, words)[0] if name == "gpu" else None,
        )
    return found


def test_a_run_is_stopped_and_resumed(done: dict[str, Done]) -> None:
    for place in done.values():
        assert place.outcomes == ["stopped", "finished"]
        first, second = map(len, place.waits)
        assert STOPPED_AFTER <= first < STEPS and first + second == STEPS
    assert len(done["cpu"].waits[0]) == len(done["gpu"].waits[0])


def test_records_equal_the_cpus(done: dict[str, Done]) -> None:
    here, there = (done[name].folder / "runs" / "run" for name in PLACES)
    for records in (train_records, validation_records):
        expected, found = records(here), records(there)
        assert len(expected) == len(found) >= STEPS // 2
        for step, record in expected.items():
            for key in {"loss", "grad_norm", "batch_hash", "bits_per_byte"} & record.keys():
                assert found[step][key] == record[key]


def test_checkpoint_tensors_equal_the_cpus(done: dict[str, Done]) -> None:
    saved = []
    for place in done.values():
        folders = sorted((place.folder / "runs" / "run" / "checkpoints").glob("step-*"))
        files = [read_checkpoint(folder).manifest["files"] for folder in folders]
        saved.append([{name: about for name, about in each.items() if name.endswith(".distcp")} for each in files])
    assert saved[0] == saved[1] and len(saved[0]) >= STEPS // 2


def test_the_generated_text_equals_the_cpus(done: dict[str, Done]) -> None:
    assert done["gpu"].text == done["cpu"].text and done["gpu"].text.startswith("The")


def test_steps_are_reproduced_exactly(done: dict[str, Done]) -> None:
    assert done["gpu"].verified == ("exact", [5, 6])


def test_a_measurement_has_figures(done: dict[str, Done]) -> None:
    measured = done["gpu"].measured
    assert measured is not None and measured["tokens_per_second"] > 0
    assert math.isfinite(measured["ceiling"]["tflops"]) and math.isfinite(measured["step_seconds"]["median"])


def test_the_host_waits_twice_in_a_step(done: dict[str, Done]) -> None:
    """And at ZeRO-3 where DeepSpeed does."""
    measured = done["gpu"].measured
    assert measured is not None
    stage_3 = measured["config"]["engine"]["zero_stage"] == 3
    for start in done["gpu"].waits:
        for number, waits in enumerate(start):
            allowed = Counter(IN_A_STEP | (IN_A_FIRST_STEP if number == 0 else {}) | (AT_STAGE_3 if stage_3 else {}))
            assert not Counter({place: count for place, count in waits.items() if place not in BESIDE_A_STEP}) - allowed
    assert not any(itertools.chain(*done["cpu"].waits))
