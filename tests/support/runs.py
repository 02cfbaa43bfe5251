"""The real `pretrain` command in a folder of its own, with a model and a dataset that take milliseconds a step."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pretrain.exit_codes import ExitCode
from pretrain.tracking.metrics_file import read_metrics
from tests.support import warm
from tests.support.cores import cores
from tests.support.corpus import make_texts, write_jsonl
from tests.support.hosts import held_port
from tests.support.ranks import warm_parent
from tests.support.warm import WarmProcess

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
"""No command of these tests may take longer; on an idle machine the slowest takes a tenth of it."""

WARM = ("train", "evaluate", "export", "import", "generate", "verify-resume", "bench")
"""Commands that import torch."""

DATA = (
    "data.name=synthetic",
    "data.validation_min_bytes=3000",
    "data.samples_per_member=4",
    "tokenizer.vocab_size=300",
    "prepare.num_workers=1",
)
SHAPE = (
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.ffn_hidden_size=64",
    "model.seq_length=32",
)
TRAINING = (
    "engine.device=cpu",
    "engine.cpu_threads=1",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.max_steps=16",
    "optim.lr=3e-3",
    "lr_schedule.warmup_steps=4",
    "evaluation.every_steps=8",
    "evaluation.max_samples=10",
    "checkpoint.every_steps=4",
    "tracking=off",
    "tracking.tensorboard=false",
    "tracking.peak_tflops=1",
    "tracking.log_every_steps=1",
)
SLOW_STEPS = """
import os
import time

import data_pipeline.stream.loader as loader

real_batches = loader.train_batches


def train_batches(*args, **kwargs):
    for batch in real_batches(*args, **kwargs):
        time.sleep(float(os.environ["STEP_SECONDS"]))
        yield batch


loader.train_batches = train_batches
"""
"""A module that Python imports at its start."""


class Workplace:
    """A folder in which commands run, and the dataset that they train on."""

    def __init__(self, folder: Path, dataset: Path) -> None:
        self.folder, self.dataset = folder, dataset
        folder.mkdir(parents=True, exist_ok=True)

    def train_overrides(self, name: str, *overrides: str) -> list[str]:
        """Overrides that make a run small, followed by the test's own."""
        return [*DATA, *SHAPE, *TRAINING, f"data.path={self.dataset}", f"run.name={name}", *overrides]

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def prepare(self, *overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.command("prepare", *DATA, *SHAPE, f"data.path={self.dataset}", *overrides, **options)

    def train(self, name: str, *overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.command("train", *self.train_overrides(name, *overrides), **options)

    def generate(self, *overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.command("generate", "device=cpu", *overrides, **options)

    def command(
        self, *words: str, env: Mapping[str, str] | None = None, real: bool = False, num_ranks: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; both streams as text. `real`: a process of its own, where the command itself is tested.

        `num_ranks`: on several processes, which a launcher without words of its own starts.
        """
        if real or words[0] not in WARM:
            return self._finish([*program_command(), *words], env)
        return self._finish_warm(num_ranks, words, env)

    def on_ranks(self, num_ranks: int, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`train` on several processes."""
        return self.command("train", *self.train_overrides(name, *overrides), num_ranks=num_ranks)

    def torchrun(self, num_ranks: int, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`train` on several processes under torchrun."""
        return self._finish([*torchrun_command(num_ranks), "train", *self.train_overrides(name, *overrides)])

    def _finish(self, command: list[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=environment(env), capture_output=True, text=True, timeout=SECONDS
        )

    def _finish_warm(
        self, num_ranks: int, words: Sequence[str], env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder, held_port() as port:
            outputs = Path(folder, "stdout"), Path(folder, "stderr")
            request = warm.Request(tuple(words), self.folder, environment(env), *outputs, num_ranks, port)
            with cores(max(1, num_ranks)):
                return warm.run(warm_parent(), request, SECONDS)

    @contextlib.contextmanager
    def training(
        self, name: str, *overrides: str, num_ranks: int = 0, step_seconds: float = 0.0, torchrun: bool = False
    ) -> Iterator["LiveRun"]:
        """A run in the background; all that is left of it is killed at the end.

        `step_seconds`: a step takes at least so long, for a test that does something between two of its steps.
        `torchrun`: a real one starts the ranks.
        """
        words = ("train", *self.train_overrides(name, *overrides))
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with held_port() as port:
            if torchrun:
                run = LiveRun(self._start_torchrun(num_ranks, words, step_seconds, log), self.run_dir(name), log)
            else:
                before = self._slow_steps() if step_seconds else None
                variables = environment({"STEP_SECONDS": str(step_seconds)})
                request = warm.Request(words, self.folder, variables, log, log, num_ranks, port, before)
                run = LiveRun(warm_parent().start(request), self.run_dir(name), log)
            try:
                yield run
            finally:
                run.kill()

    def _start_torchrun(
        self, num_ranks: int, words: Sequence[str], step_seconds: float, log: Path
    ) -> subprocess.Popen[bytes]:
        with log.open("wb") as stream:
            return subprocess.Popen(
                [*torchrun_command(num_ranks), *words],
                cwd=self.folder,
                env=environment(planted(self._slow_steps(), STEP_SECONDS=str(step_seconds)) if step_seconds else None),
                stdout=stream,
                stderr=stream,
            )

    def _slow_steps(self) -> Path:
        """Code for a process to run first, so that its steps take `STEP_SECONDS`."""
        path = self.folder / "planted" / "sitecustomize.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SLOW_STEPS, encoding="utf-8")
        return path


class LiveRun:
    """A run in the background."""

    def __init__(self, process: subprocess.Popen[bytes] | WarmProcess, run_dir: Path, log: Path) -> None:
        self.process, self.run_dir, self._log = process, run_dir, log

    @property
    def log(self) -> str:
        """Everything that it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until something is seen from outside; fails with the log where the run ends before."""
        limit = time.monotonic() + SECONDS
        while not happened():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < limit, f"nothing seen for {SECONDS} s:\n{self.log}"
            time.sleep(0.0005)

    def wait_for_step(self, step: int) -> None:
        """Until the record of a step is on the disk."""
        mark = f'"step": {step},'.encode()
        metrics = self.run_dir / "metrics.jsonl"
        self.wait_for(lambda: metrics.exists() and mark in metrics.read_bytes())

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that the launcher started, without those that they started in turn."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
                rank = process.environ().get("RANK") or warm.rank_of(process.name())
                if rank:
                    found.setdefault(int(rank), process)
        return found

    def freeze_where(self, holds: Callable[[], bool]) -> None:
        """Stop the process at a moment when `holds`: looked at again when nothing moves any more."""
        while True:
            self.wait_for(holds)
            self.process.send_signal(signal.SIGSTOP)
            self.wait_for(self._stands_still)
            if holds():
                return
            self.process.send_signal(signal.SIGCONT)

    def _stands_still(self) -> bool:
        """Every thread has stopped: one that was in a call to the system ended it first."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        for task in os.listdir(tasks):
            with contextlib.suppress(OSError):  # a thread that has ended
                if (tasks / task / "stat").read_text().rpartition(")")[2].split()[0] not in "TXZ":
                    return False
        return True

    def kill(self) -> None:
        """kill -9, also of a frozen run; nothing where it has ended."""
        if self.process.poll() is None:
            workers = psutil.Process(self.process.pid).children(recursive=True)
            for process in (psutil.Process(self.process.pid), *workers):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for the end; its exit code."""
        return self.process.wait(seconds)


def program_command() -> list[str]:
    return [sys.executable, "-m", "pretrain"]


def torchrun_command(num_ranks: int) -> list[str]:
    # --standalone: a port of its own, so that runs side by side do not meet.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    return [*torchrun, "-m", "pretrain"]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """A user's environment: one thread, this repository, no wandb account, no launcher."""
    hidden = ("WANDB_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(changes or {})}


def planted(path: Path, **variables: str) -> dict[str, str]:
    """Variables with which Python runs `path`, a `sitecustomize.py`, at its start."""
    return {"PYTHONPATH": os.pathsep.join([str(path.parent), str(ROOT)]), **variables}


def prepare_dataset(folder: Path) -> Path:
    """The dataset of these tests, made by the real command; returns its folder."""
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(60))
    place = Workplace(folder, folder / "dataset")
    done = place.prepare(f"data.inputs=[{corpus}]")
    assert done.returncode == 0, done.stderr
    return place.dataset


def train_records(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was recorded of it."""
    return {record["step"]: record for record in read_metrics(run_dir) if record["kind"] == "train"}


def validation_records(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Step -> the validation after it."""
    return {record["step"]: record for record in read_metrics(run_dir) if record["kind"] == "validation"}


def user_error(done: subprocess.CompletedProcess[str], code: ExitCode = ExitCode.MISTAKE) -> str:
    """The message of a command that refused: one message, an exit code, no traceback."""
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    _, mark, message = done.stderr.partition("pretrain: error: ")
    assert mark and "pretrain: error: " not in message, done.stderr
    assert not done.stdout
    return message.strip()


def files_below(folder: Path) -> set[str]:
    """Names of everything in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
