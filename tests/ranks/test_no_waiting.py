"""No device sync between the start of a step's first forward pass and the end of its last backward pass.

The host fetches no number from the device, and waits neither for a copy to it nor for the device itself.
"""

import itertools
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine import device as device_module
from pretrain.engine import zero
from pretrain.engine.device import Stopwatch, to_device
from tests.support.models import batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import own_batch, start

READ = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy", "cpu"}
"""Tensor methods that fetch a number to the host."""
MADE = {"new_tensor", "tensor", "as_tensor"}
"""Functions that copy numbers of the host to a device and wait for the copy, if they get a device argument."""
SIZED = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "is_nonzero", "equal", "_local_scalar_dense"}
"""Operations that return a number, or a tensor whose size only the device knows."""
NOT_THE_PLACE = {"add", "synchronize", "__torch_function__", "__torch_dispatch__"}
NO_GPU = not torch.cuda.is_available()


class Waits:
    """Counts operations for which the host would wait for a GPU, by the calling function of ours or of a vendor."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()

    def add(self, what: str) -> None:
        for frame in reversed(traceback.extract_stack()):
            file = Path(frame.filename)
            if frame.name not in NOT_THE_PLACE and "torch" not in file.parts:
                self.places[f"{what} in {file.stem}.{frame.name}"] += 1
                return

    def __enter__(self) -> "Waits":
        self._modes = [_Functions(self), _Operations(self)]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(None, None, None)


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in READ or (name in MADE and (name == "new_tensor" or kwargs.get("device") is not None)):
            self.waits.add(name)
            with torch._C._DisableTorchDispatch():  # otherwise the operations inside are counted too
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # The size of an index that is a mask is read from the device, unless all its elements are set to one value.
        masks = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for index in itertools.chain.from_iterable(arg for arg in args if isinstance(arg, list | tuple))
        )
        if name in SIZED or (masks and not (name.startswith("index_put") and args[2].numel() == 1)):
            self.waits.add(name)
        return func(*args, **(kwargs or {}))


def waits_of_a_step(here: Runtime, config: RunConfig) -> tuple[Counter[str], Counter[str]]:
    """Within forward and backward passes, and in the whole step."""
    engine, inner, whole = start(here, config), Waits(), Waits()
    for _ in range(2):  # tables of positions are made once; DeepSpeed's clock starts later
        engine.train_step(own_batch(here, config, 0), 1e-3)
    schedule = zero.run_schedule

    def watched(*args: Any, **kwargs: Any) -> Any:
        with inner:
            return schedule(*args, **kwargs)

    zero.run_schedule = watched

    def synchronize(*_: Any) -> None:
        whole.add("synchronize")

    get_accelerator().synchronize = synchronize
    tokens = own_batch(here, config, 1)
    with whole:
        engine.train_step(tokens, 1e-3, torch.ones(len(tokens), config.model.seq_length, dtype=torch.bool))
    return inner.places, whole.places


APART = "data.document_mask=true"
IN_PLACE = "engine.cross_entropy=in_place"
CASES: dict[str, tuple[int, RunConfig]] = {
    "gpt-zero0": (1, run_config("gpt", *batches(1), zero_stage=0)),
    "gpt-zero0-bf16": (1, run_config("gpt", *batches(1), IN_PLACE, zero_stage=0, precision="bf16")),
    "llama-zero0-fp16-dp2": (2, run_config("llama", *batches(2), zero_stage=0, precision="fp16")),
    "gpt-zero1-bf16-documents": (1, run_config("gpt", *batches(1), APART, IN_PLACE, zero_stage=1, precision="bf16")),
    "llama-zero2-bf16": (1, run_config("llama", *batches(1), zero_stage=2, precision="bf16")),
    "llama-zero3-documents": (1, run_config("llama", *batches(1), APART, zero_stage=3)),
    "gpt-zero3-bf16-dropout": (
        1,
        run_config("gpt", *batches(1), "model.hidden_dropout=0.1", zero_stage=3, precision="bf16"),
    ),
    "gpt-zero1-tp2-pp2-documents": (
        4,
        run_config("gpt", *batches(1), APART, IN_PLACE, zero_stage=1, tp=2, pp=2, sp=True),
    ),
}


READ_LATER = {"item in gradients.global_norm": 1, "tolist in zero.train_step": 1}
"""Clipping needs the norm. Loss and number of targets are fetched after the whole step is enqueued."""
ON_THE_HOST = {
    "nonzero in schedule.document_starts",
    "tolist in attention._lengths",
    "__bool__ in utils.is_invalid_grad_norm",
}
"""These read tensors on the host: tokens from the loader, document starts (attention.py asserts it), and the norm that
DeepSpeed gets from us."""


@pytest.mark.parametrize("case", CASES)
def test_no_device_sync_between_first_forward_and_last_backward(case: str) -> None:
    for inner, whole in run_ranks(waits_of_a_step, *CASES[case]):
        assert not set(inner) - ON_THE_HOST
        assert {what: count for what, count in whole.items() if what not in ON_THE_HOST} == READ_LATER


def test_device_syncs_are_counted() -> None:
    values, mask = torch.ones(3), torch.tensor([True, False, True])
    seen: dict[Callable[[], object], str] = {
        lambda: values[0].item(): "item",
        lambda: values.tolist(): "tolist",
        lambda: bool(mask.any()): "__bool__",
        lambda: float(values[0]): "__float__",
        lambda: values.new_tensor(1.0): "new_tensor",
        lambda: torch.tensor(1.0, device="cpu"): "tensor",
        lambda: values[mask]: "index",
        lambda: values.masked_select(mask): "masked_select",
        lambda: torch.equal(values, values): "equal",
        lambda: torch.arange(values[0]): "_local_scalar_dense",
    }
    for waits, name in seen.items():
        with Waits() as counted:
            waits()
        assert f"{name} in test_no_waiting.<lambda>" in counted.places
    for goes_on in (lambda: values.masked_fill(mask, 0.0), lambda: torch.full_like(values, 3.0), lambda: len(values)):
        with Waits() as counted:
            goes_on()
        assert not counted.places


def test_a_cpu_tensor_is_not_copied() -> None:
    tokens = torch.arange(5)
    assert to_device(tokens, torch.device("cpu")) is tokens


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="needs a GPU")])]
)
def test_values_arrive_and_times_add_up(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.device(device)
    for values in (torch.arange(5), torch.rand(3), torch.tensor([True, False])):
        assert torch.equal(to_device(values, place).cpu(), values)
    watch, now = Stopwatch(place), [0.0]
    sleep: Callable[[float], None] = time.sleep
    if device == "cpu":  # a real clock would also count the time of other processes
        monkeypatch.setattr(device_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        sleep = lambda seconds: now.append(now.pop() + seconds)  # noqa: E731
    for pause in (0.0, 0.02, 0.0):
        sleep(pause)
        watch.mark()
    assert watch.seconds(0) >= 0.02 > watch.seconds(1) >= 0
