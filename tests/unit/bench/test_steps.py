"""The time of measuring does not belong to the measured steps."""

import pytest
import torch

from pretrain.bench import steps
from pretrain.bench.steps import PerStepClock
from pretrain.model.flops import TokenFlops


def test_a_step_does_not_pay_for_being_measured(monkeypatch):
    now = 100.0

    def slow_to_tell(device):
        nonlocal now
        now += 50
        return 1

    monkeypatch.setattr(steps, "peak_bytes", slow_to_tell)
    clock = PerStepClock(TokenFlops(1.0, 1.0, 1.0), 1, torch.device("cpu"))
    clock._now = lambda: now
    for seconds in (3.0, 4.0):
        with clock.part("data"):
            now += seconds
        clock.end_step(10)
    assert [step["seconds_step"] for step in clock.steps] == pytest.approx([3, 4])
