"""engine.attention: which of torch's kernels may serve which model where."""

import dataclasses
from typing import Any

import pytest

from pretrain.config.attention_kernels import AttentionRequest, attention_kernels, attention_request, unsupported_reason
from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config

GPU = AttentionRequest(device="cuda", precision="bf16", head_width=128, dropout=0.0, documents=False, grouped=False)
CPU = dataclasses.replace(GPU, device="cpu", precision="fp32")


@pytest.mark.parametrize(
    ("base", "changes", "able"),
    [
        (GPU, {}, ("flash", "cudnn", "efficient", "math")),
        (GPU, {"dropout": 0.1}, ("flash", "cudnn", "efficient", "math")),
        (GPU, {"precision": "fp32"}, ("efficient", "math")),
        (GPU, {"head_width": 192}, ("flash", "efficient", "math")),
        (GPU, {"head_width": 264}, ("efficient", "math")),
        (GPU, {"head_width": 12}, ("flash", "math")),
        (GPU, {"precision": "fp32", "head_width": 12}, ("efficient", "math")),
        (GPU, {"documents": True}, ("flash", "efficient", "math")),
        (GPU, {"grouped": True}, ("flash", "cudnn", "math")),
        (CPU, {}, ("flash", "math")),
        (CPU, {"precision": "bf16", "head_width": 300, "documents": True, "grouped": True}, ("flash", "math")),
        (CPU, {"dropout": 0.1}, ("math",)),
    ],
)
def test_able_kernels_are_in_order(base: AttentionRequest, changes: dict[str, Any], able: tuple[str, ...]) -> None:
    asked = dataclasses.replace(base, **changes)
    assert attention_kernels("auto", asked) == able
    for kernel in ("flash", "cudnn", "efficient", "math"):
        assert attention_kernels(kernel, asked) == ((kernel,) if kernel in able else ())
        assert (unsupported_reason(kernel, asked) is None) == (kernel in able)


def test_calls_are_those_of_the_model() -> None:
    config = load_run_config(["model=llama_8b", "engine=zero1_bf16", "model.attention_dropout=0.1"])
    expected = AttentionRequest("cuda", "bf16", head_width=128, dropout=0.1, documents=True, grouped=True)
    assert attention_request(config.model, config.engine, "cuda", documents=True) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["engine.attention=cudnn", "engine.device=cpu"],
            "engine.attention=cudnn: needs a GPU\n  hint: choose engine.attention=auto or engine.attention=flash or "
            "engine.attention=math",
        ),
        (
            ["engine.attention=flash", "engine.device=cpu", "model.attention_dropout=0.1"],
            "engine.attention=flash: has no dropout on a CPU\n  hint: set model.attention_dropout=0, or choose "
            "engine.attention=auto or engine.attention=math",
        ),
        (
            ["engine.attention=flash", "engine.device=cuda"],
            "engine.attention=flash: takes 16 bits only on a GPU\n  hint: set engine.precision=bf16, or choose "
            "engine.attention=auto or engine.attention=efficient or engine.attention=math",
        ),
    ],
)
def test_an_unsupported_kernel_is_refused_with_a_hint(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_run(load_run_config(overrides), world_size=1)
    assert [str(problem) for problem in refused.value.problems] == [message]


def test_with_device_auto_a_gpu_kernel_is_not_refused_yet() -> None:
    check_run(load_run_config(["engine.attention=cudnn", "engine.device=auto"]), world_size=1)
