"""Functions run on this machine's GPU, in a process without pytest's, which joins no group.

To start one takes many seconds there, so one process serves many cases; each has an outcome of its own.
"""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.config.run import RunConfig
from tests.support.runs import environment


def reason_for_none() -> str | None:
    """Why nothing can be tested on a GPU here; None: it can."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none here"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"needs a GPU that computes in bf16 (compute capability 8.0), this one has {capability}"
    return None


@dataclass(frozen=True)
class Outcome:
    """The result of one case."""

    value: Any
    failure: str | None = None

    def result(self) -> Any:
        assert self.failure is None, self.failure
        return self.value


def on_gpu(
    function: Callable[..., Any], cases: Mapping[str, RunConfig], *args: Any, timeout: float = 600.0
) -> dict[str, Outcome]:
    """`function(here, groups, config, *args)` for each case, one after the other, on the device that they name.

    `here` is the `Runtime` of the one rank, `groups` all its process groups. The function must be at
    a module's top level, because it is pickled by name; arguments and results are pickled. Never raises: a case that
    was not reached reports that itself.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "request").write_bytes(pickle.dumps((function, dict(cases), args)))
        with (folder / "output").open("wb") as output:
            try:
                code: object = subprocess.run(
                    [sys.executable, "-m", "tests.support.gpu", name],
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=timeout,
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"none after {timeout:g} s"
        printed = (folder / "output").read_text(errors="replace")[-6000:]
        missing = Outcome(None, f"not done; the process for all cases had exit code {code} and printed:\n{printed}")
        files = {case: folder / f"{number}" for number, case in enumerate(cases)}
        return {case: pickle.loads(file.read_bytes()) if file.exists() else missing for case, file in files.items()}


def _main(folder: Path) -> None:
    import torch.distributed as dist

    from pretrain.distributed.runtime import runtime
    from tests.support.training import join

    function, cases, args = pickle.loads((folder / "request").read_bytes())
    first = next(iter(cases.values()))
    with runtime(first.engine, dist.FileStore(str(folder / "store"), 1)) as here:
        groups = join(here, first)
        for number, config in enumerate(cases.values()):
            try:
                outcome = Outcome(function(here, groups, config, *args))
            except Exception:
                outcome = Outcome(None, traceback.format_exc())
            partial = folder / f"{number}.partial"
            partial.write_bytes(pickle.dumps(outcome))
            partial.rename(folder / f"{number}")
            gc.collect()
        sys.stdout.flush()
        os._exit(0)  # not by way of what vendors left behind


if __name__ == "__main__":
    # Under its module's name, not as __main__: outcomes are unpickled from there.
    from tests.support import gpu

    gpu._main(Path(sys.argv[1]))
