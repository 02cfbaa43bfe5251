"""The pretend GPU refuses what a GPU refuses, writes down what makes the host wait, and counts its bytes."""

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain.distributed.runtime import Runtime
from pretrain.pretend import device as pretend
from pretrain.pretend.device import ledger
from pretrain.pretend.machine import on_pretend_gpu, without_values
from tests.support.ranks import run_ranks


def attempts(here: Runtime) -> dict[str, str]:
    """The error type of each operation, or an empty text."""
    on_host, there = torch.ones(2, 3), torch.ones(2, 3, device=here.device)
    group = dist.new_group(backend="gloo")
    tried: dict[str, Callable[[], object]] = {
        "two devices": lambda: on_host + there,
        "a number of the host's": lambda: there * torch.tensor(2.0),
        "numpy": lambda: there.numpy(),
        "a copy for numpy": lambda: there.cpu().numpy(),
        "pinning an expanded view": lambda: torch.ones(2, 1).expand(2, 3).pin_memory(),
        "a generator of the host's": lambda: torch.randn(3, device=here.device, generator=torch.Generator()),
        "a collective": lambda: dist.all_reduce(there),
        "a collective on the host": lambda: dist.all_reduce(on_host),
        "a collective of the host's ranks": lambda: dist.all_reduce(there, group=group),
        "other values in place of a parameter's": lambda: setattr(there, "data", on_host),
    }
    ends = {}
    for name, attempt in tried.items():
        try:
            attempt()
            ends[name] = ""
        except (RuntimeError, TypeError, AssertionError) as error:
            ends[name] = type(error).__name__
    return ends


def test_what_a_gpu_refuses_is_refused() -> None:
    (ends,) = run_ranks(attempts, 1, around=on_pretend_gpu)
    assert ends == {
        "two devices": "RuntimeError",
        "a number of the host's": "",
        "numpy": "TypeError",
        "a copy for numpy": "",
        "pinning an expanded view": "RuntimeError",
        "a generator of the host's": "RuntimeError",
        "a collective": "",
        "a collective on the host": "RuntimeError",
        "a collective of the host's ranks": "RuntimeError",
        "other values in place of a parameter's": "AssertionError",
    }


def waits_of_each(here: Runtime) -> list[tuple[str, dict[str, int]]]:
    """The expected waits of each operation, and the recorded ones."""
    host, there = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 3.0], device=here.device)
    pinned, mask = host.pin_memory(), there > 0
    tried: list[tuple[str, Callable[[], object]]] = [
        ("item", lambda: there[0].item()),
        ("item", lambda: float(there[0])),
        ("item", lambda: bool(mask.any())),
        ("tolist", lambda: there.tolist()),
        ("copy to host", lambda: there.cpu()),
        ("copy to host", lambda: host.clone().copy_(there)),
        ("copy to host", lambda: host.clone().copy_(there, non_blocking=True)),
        ("copy from host", lambda: host.to(here.device)),
        ("copy from host", lambda: host.to(here.device, non_blocking=True)),
        ("copy from host", lambda: pinned.to(here.device)),
        ("copy from host", lambda: torch.tensor(1.0, device=here.device)),
        ("copy from host", lambda: there.new_tensor(1.0)),
        ("nonzero", lambda: there.nonzero()),
        ("equal", lambda: torch.equal(there, there)),
        ("index", lambda: there[mask]),
        ("", lambda: pinned.to(here.device, non_blocking=True)),
        ("", lambda: pinned.copy_(there, non_blocking=True)),
        ("", lambda: there.to("cpu", non_blocking=True)),
        ("", lambda: there.masked_fill(mask, 0.0)),
        ("", lambda: there[1:] * 2),
        ("", lambda: torch.full((2,), 3.0, device=here.device)),
        ("", lambda: there.clone().index_put_((mask,), there.new_zeros(()))),
    ]
    found = []
    for expected, wait in tried:
        ledger.begin()
        wait()
        found.append((expected, dict(ledger.waits)))
    return found


def test_what_makes_the_host_wait_is_written_down_with_its_place() -> None:
    (found,) = run_ranks(waits_of_each, 1, around=on_pretend_gpu)
    for expected, waits in found:
        assert waits == ({f"{expected} in test_pretend.<lambda>": 1} if expected else {})


def bytes_of_work(here: Runtime) -> list[int]:
    found = []
    base = ledger.now
    kept = torch.zeros(1000, device=here.device)
    view = kept[10:].view(33, 30).t()
    found.append(ledger.now - base)  # views count once
    kept.data = torch.zeros(10, device=here.device)
    found.append(ledger.now - base)  # the view still holds what it shows
    del view
    gc.collect()
    found.append(ledger.now - base)
    ledger.begin()
    del kept
    torch.zeros(500, device=here.device).sum()
    found += [ledger.now - base, ledger.peak - base]
    return found


def test_bytes_are_those_of_living_storages() -> None:
    for around in (on_pretend_gpu, without_values):
        assert run_ranks(bytes_of_work, 1, around=around) == [[4000, 4040, 40, 0, 2004]]


def trained(here: Runtime) -> tuple[Any, ...]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 4)).to(here.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(3):
        loss = network(torch.randn(5, 8).to(here.device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, network[0].weight.device.type, network[0].weight.detach().cpu().numpy().tobytes()


def test_values_equal_the_cpus_to_the_last_bit() -> None:
    ((losses, there, weights),) = run_ranks(trained, 1, around=on_pretend_gpu)
    ((expected, cpu, expected_weights),) = run_ranks(trained, 1)
    assert (there, cpu) == (pretend.NAME, "cpu")
    assert losses == expected and weights == expected_weights


def shapes(here: Runtime) -> tuple[Any, ...]:
    large = torch.ones(2**20, 2**20, dtype=torch.float64, device=here.device)  # 8 TiB
    summed = (large @ large).sum(0)
    dist.all_reduce(summed)
    return summed.shape, summed.cpu()[:2].tolist() if summed.numel() < 2**21 else None, ledger.peak


def test_without_values_there_is_room_for_everything() -> None:
    for shape, values, peak in run_ranks(shapes, 2, around=without_values):
        assert shape == (2**20,) and values == [0.0, 0.0] and peak >= 2 * 2**43
