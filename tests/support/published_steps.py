"""Published step times as configurations, machines and behaviours of the time model.

A row names the model, the layout, the device and the training program ("stack"), and the seconds of a step.
"""

import csv
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.load import load_run_config
from pretrain.config.parallel import ParallelConfig, even_layout
from pretrain.config.run import RunConfig
from pretrain.planner.memory import Modes
from pretrain.planner.time.behaviour import CONSTANTS, Behaviour, Constants
from pretrain.planner.time.hardware import Hardware, Quantity, load_hardware
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.step import predict_step


@dataclass(frozen=True)
class Published:
    """One published step time."""

    source: str
    case: str
    seconds: float
    config: RunConfig
    vocab_size: int
    ranks: int
    hardware: Hardware
    stack: str
    attention: str
    guessed: str

    def predict(self, constants: Constants = CONSTANTS) -> StepTime:
        behaviour = behaviour_of_stack(self.stack, self.attention, constants)
        modes = Modes("per_micro_batch", "per_micro_batch")
        if self.config.engine.zero_stage < 3:
            modes = Modes("per_step", "per_step")
        return predict_step(self.config, self.vocab_size, self.ranks, modes, self.hardware, behaviour, constants)

    def error(self, constants: Constants = CONSTANTS) -> float:
        """Predicted over published time, less one."""
        return self.predict(constants).seconds / self.seconds - 1


def read_published(path: Path) -> list[Published]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(_rows(csv.DictReader(file)))


def _rows(rows: "csv.DictReader[str]") -> Iterator[Published]:
    for row in rows:
        yield Published(
            source=row["source"],
            case=row["case"],
            seconds=float(row["seconds_per_step"]),
            config=_config(row),
            vocab_size=int(float(row["vocab"])),
            ranks=int(float(row["gpus"])),
            hardware=machine(row["device"]),
            stack=row["stack"],
            attention=row["attention"],
            guessed=row.get("guessed") or "",
        )


@functools.cache
def _base() -> RunConfig:
    return load_run_config(["model=gpt3_125m", "engine=zero1_bf16"])


def _config(row: dict[str, str]) -> RunConfig:
    number = {key: int(float(row[key])) for key in _INTEGERS}
    base, gated = _base(), number["gated"] == 1
    model = dataclasses.replace(
        base.model,
        num_layers=number["layers"],
        hidden_size=number["hidden"],
        num_heads=number["heads"],
        num_query_groups=number["kv_heads"],
        head_dim=number["head_dim"],
        ffn_hidden_size=number["ffn"],
        seq_length=number["seq"],
        position="rope" if gated else "learned",
        norm="rmsnorm" if gated else "layernorm",
        activation="swiglu" if gated else "gelu",
        bias=not gated,
        tie_embeddings=number["tied"] == 1,
        vocab_multiple_of=1,
    )
    pp, vp = number["pp"], number["vp"]
    divides = number["layers"] % (pp * vp) == 0
    parallel = ParallelConfig(
        tp=number["tp"],
        sp=number["sequence_parallel"] == 1,
        pp=pp,
        vp=vp,
        pp_layout=None if divides else _uneven_layout(number["layers"], pp * vp),
    )
    recompute = row["recompute"]
    half = -(-number["layers"] // (2 * pp * vp))
    chosen = dataclasses.replace(
        base.engine.recompute,
        granularity={"full_stop": "full", "sac": "full"}.get(recompute, recompute),
        modules=("core_attn",),
        method="block" if recompute == "sac" else "uniform",
        num_layers=half if recompute == "sac" else 1,
    )
    engine = dataclasses.replace(base.engine, zero_stage=number["zero"], recompute=chosen)
    at_once = number["micro_batch"] * (number["gpus"] // (number["tp"] * pp))
    whole = max(1, round(number["global_batch"] / at_once)) * at_once  # some sources round their batch
    train = dataclasses.replace(base.train, micro_batch_size=number["micro_batch"], global_batch_size=whole)
    return dataclasses.replace(base, model=model, parallel=parallel, engine=engine, train=train)


def _uneven_layout(layers: int, chunks: int) -> str:
    """Embedding and head count as a layer each; the last chunks take what is left over."""
    even = even_layout(layers, chunks)
    if even is not None:
        return even
    items = "E" + "t" * layers + "L"
    each, over = divmod(len(items), chunks)
    ends = list(itertools.accumulate(each + (number >= chunks - over) for number in range(chunks)))
    return "|".join(items[end - size : end] for end, size in zip(ends, _sizes(ends), strict=True))


def _sizes(ends: list[int]) -> list[int]:
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


_INTEGERS = (
    *("gpus", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "gated", "tied", "seq", "tp", "pp", "vp"),
    *("micro_batch", "global_batch", "sequence_parallel", "zero"),
)


@functools.cache
def machine(device: str) -> Hardware:
    """The record of a device as the rows name it."""
    if "A100" in device:
        hardware = load_hardware("a100_40" if re.search(r"A100\D*40\b", device) else "a100_80")
    elif "H200" in device:
        hardware = load_hardware("h200")
    elif "B200" in device:
        hardware = load_hardware("b200")
    elif "H100" in device:
        hardware = load_hardware("h100")
    else:
        raise ValueError(f"unknown device {device}")
    if "100 GB/s a node" in device:
        hardware = dataclasses.replace(hardware, nics_per_node=_given(4))
    if "500W" in device:
        # The clock falls further than at 700 W, and HBM2e is slower than HBM3.
        slower = hardware.sustained_share.value * 0.82
        hardware = dataclasses.replace(hardware, sustained_share=_given(slower), copy_gbps=_given(0.85 * 2400))
    return hardware


def _given(value: float) -> Quantity:
    return Quantity(value, "guess", "as the source describes its machine")


def behaviour_of_stack(stack: str, attention: str, constants: Constants) -> Behaviour:
    """How a published program works, by its name."""
    kernel = attention if attention in ("unfused", "fa1", "fa2", "fa3", "cudnn") else "fa2"
    eager = Behaviour(
        name=stack,
        elementwise=constants.eager_bytes,
        loss_bytes=constants.eager_loss_bytes,
        attention=kernel,  # type: ignore[arg-type]
        reduction="overlapped",
        gather="overlapped",
        optimizer_bytes=constants.optimizer_bytes,
        accumulates=False,
    )
    compiled = dataclasses.replace(eager, elementwise=constants.compiled_bytes, loss_bytes=12.0, host_layer=0.3)
    megatron = dataclasses.replace(
        eager,
        elementwise=constants.megatron_bytes,
        accumulates=True,
        reduction="after",
        host_layer=constants.megatron_host,
        host_collective_us=constants.megatron_collective_us,
        host_eager_softmax_us=constants.megatron_eager_softmax_us,
        host_micro_batch_us=constants.megatron_micro_batch_us,
    )
    text = stack.lower()
    if "deepspeed zero-3 2021" in text:
        return dataclasses.replace(megatron, nics_per_ring=1.0)
    if "megatron" in text or text == "same" or "vtrain" in text:
        if kernel == "unfused":
            return megatron
        return dataclasses.replace(megatron, reduction="overlapped", reduced_bytes=4.0)
    if "llmq" in text or "llm.c" in text or "c++" in text:
        return dataclasses.replace(
            compiled,
            elementwise=constants.megatron_bytes,
            host_layer=0.0,
            loss_bytes=8.0,
            optimizer_bytes=20.0,
            accumulates=True,
        )
    if "composer" in text or "fsdp1 (mpt)" in text:
        return dataclasses.replace(eager, stops_early=True)
    if "meta" in text or "llama" in text or "compile" in text or "jax" in text or "fsdp2" in text or "maxtext" in text:
        return compiled
    if "nanotron" in text:
        # Its norms, rotary positions and loss are fused kernels, its activations and sums are not.
        half_fused = (1 + constants.eager_bytes) / 2
        return dataclasses.replace(
            eager, elementwise=half_fused, reduction="after", gather="serial", accumulates=True, reduced_bytes=4.0
        )
    if "deepspeed zero-2" in text:
        return dataclasses.replace(eager, gather="serial")  # parameters are gathered after the update
    return eager
