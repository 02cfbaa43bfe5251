import os

import pytest
import torch

from pretrain.model.flops import TokenFlops
from pretrain.tracking.speed import DevicePeak, StepClock, device_peak, memory_use, peak_flops

FLOPS = TokenFlops(six_n=6e9, six_n_6lhs=7e9, six_n_12lhs=8e9)


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def run_step(clock, time, data=1.0, forward_backward=6.0, optimizer=2.0, other=1.0, tokens=1000):
    with clock.part("data"):
        time.time += data
    with clock.part("forward_backward"):
        time.time += forward_backward
    time.time += optimizer + other
    clock.add("optimizer", optimizer)
    clock.end_step(tokens)


def test_the_parts_and_the_rates_follow_from_the_clock():
    time = Clock()
    clock = StepClock(FLOPS, num_devices=2, peak=DevicePeak(1e12, "table"), now=time)
    time.time += 50  # loading the model does not count as a step
    run_step(clock, time)
    run_step(clock, time, data=3.0, other=7.0)
    assert clock.take() == pytest.approx(
        {
            "tokens_per_second": 2000 / 28,
            "tflops": 2000 / 28 / 2 * 7e9 / 1e12,
            "seconds_step": 14.0,
            "seconds_data": 2.0,
            "seconds_forward_backward": 6.0,
            "seconds_optimizer": 2.0,
            "mfu_6n": 2000 / 28 / 2 * 6e9 / 1e12,
            "mfu_6n_6lhs": 2000 / 28 / 2 * 7e9 / 1e12,
            "mfu_6n_12lhs": 2000 / 28 / 2 * 8e9 / 1e12,
        }
    )


def test_intervals_are_independent():
    time = Clock()
    clock = StepClock(FLOPS, num_devices=1, peak=None, now=time)
    run_step(clock, time)
    first = clock.take()
    run_step(clock, time)
    assert clock.take() == first
    assert clock.take() == {}


def test_time_outside_belongs_to_no_step():
    time = Clock()
    clock = StepClock(FLOPS, num_devices=1, peak=None, now=time)
    run_step(clock, time)
    plain = clock.take()
    with clock.outside():
        time.time += 1000
    run_step(clock, time)
    assert clock.take() == plain


def test_without_a_known_peak_no_mfu_is_claimed():
    time = Clock()
    clock = StepClock(FLOPS, num_devices=1, peak=None, now=time)
    run_step(clock, time)
    assert not [name for name in clock.take() if name.startswith("mfu")]


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "fp16", 835.5),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA B300 SXM6 AC", "bf16", 2250),
        ("NVIDIA L40", "bf16", 181),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA GeForce RTX 5090", "bf16", 209.5),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10", "fp16", 125),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("AMD Instinct MI250X", "bf16", 191.5),
        ("AMD Instinct MI300X", "bf16", 1307.4),
    ],
)
def test_known_chips_are_found_by_the_name_they_give_themselves(name, precision, tflops):
    assert peak_flops(name, precision) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA GB300", "bf16"),
        ("NVIDIA RTX 6000 Ada Generation", "bf16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16"),
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA GeForce RTX 5090 D", "bf16"),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", "bf16"),
        ("Tesla V100-SXM2-16GB", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("NVIDIA H200 MIG 3g.71gb", "bf16"),
    ],
)
def test_unknown_chips_and_precisions_have_no_peak(name, precision):
    assert peak_flops(name, precision) is None


def test_the_configured_peak_goes_before_the_table():
    assert device_peak(100.0, "NVIDIA H200", "bf16") == DevicePeak(100e12, "configured")
    assert device_peak(None, "NVIDIA H200", "bf16") == DevicePeak(989.4e12, "table")
    assert device_peak(None, "an unknown chip", "bf16") is None


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_cpu_peak_is_measured_in_the_runs_precision(monkeypatch, precision, dtype):
    """A CPU with units for bf16 computes in it several times as fast as in fp32: MFU would be more than the whole."""
    multiply, seen = torch.mm, set()

    def watched(left, right):
        seen.add((left.dtype, right.dtype))
        return multiply(left, right)

    monkeypatch.setattr(torch, "mm", watched)
    peak = device_peak(None, None, precision)
    assert peak is not None and peak.source == "measured"
    assert 1e8 < peak.flops < 1e15
    assert seen == {(dtype, dtype)}


def test_resident_memory_is_what_the_system_says():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    expected = pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert memory_use()["host_memory_gib"] == pytest.approx(expected, rel=0.2)
