"""Records of a machine: how fast one device computes, copies and communicates, and where each number comes from.

Presets are in conf/hardware/. `pretrain bench --record FILE` writes a measured record of the same form.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.describe import CONF_DIR
from pretrain.config.errors import MISSING, ConfigError, Problem
from pretrain.config.nearest import did_you_mean
from pretrain.config.records import to_record
from pretrain.planner.time.cpu_costs import CpuCosts

Origin = Literal["published", "measured", "guess"]
Kind = Literal["gpu", "cpu"]
Precision = Literal["fp32", "bf16", "fp16"]
Direction = Literal["forward", "backward"]

KEY = "cluster.hardware"
FOLDER = CONF_DIR / "hardware"


@dataclass(frozen=True)
class Quantity:
    """One number with its origin."""

    value: float
    origin: Origin
    source: str
    """The publication, the measurement, or the reason of the guess."""


@dataclass(frozen=True)
class Rates:
    """TFLOP/s by precision; None for a precision that the device lacks."""

    fp32: Quantity
    bf16: Quantity | None = None
    fp16: Quantity | None = None

    def of(self, precision: Precision) -> float | None:
        quantity: Quantity | None = getattr(self, precision)
        return None if quantity is None else quantity.value


@dataclass(frozen=True)
class Product:
    """One measured matrix product [m, k] x [k, n]."""

    m: int
    k: int
    n: int
    tflops: float
    accumulate: bool = False
    """Whether the result is added to an fp32 matrix, as for weight gradients."""
    data_gradient: bool = False
    """Whether it is the gradient of an input: the weight is then read the other way round than forward."""


@dataclass(frozen=True)
class ProductTable:
    """Measured products of one precision. They replace the tile model at their shapes and correct it between them."""

    precision: Precision
    origin: Origin
    source: str
    products: tuple[Product, ...]


@dataclass(frozen=True)
class AttentionCurve:
    """Achieved TFLOP/s of causal attention by sequence length; only the lower triangle's operations count."""

    kernel: str
    """fa1, fa2, fa3 (FlashAttention), cudnn, efficient, or cpu."""
    direction: Direction
    head_dim: int
    origin: Origin
    source: str
    tflops: dict[str, float] = dataclasses.field(hash=False)
    """By number of tokens of a sequence."""


@dataclass(frozen=True)
class Link:
    """One kind of connection between devices."""

    latency_us: Quantity
    """Microseconds of a collective over two ranks that sends almost nothing."""
    hop_us: Quantity
    """Microseconds that each further rank of a ring adds."""
    gbps: Quantity
    """GB/s in one direction that a large transfer reaches: of a device in the node, of one network card between
    nodes."""


@dataclass(frozen=True)
class Hardware:
    """One kind of machine. Rates are those of one GPU; on a CPU those of the whole machine, which its ranks share."""

    name: str
    kind: Kind
    device_names: tuple[str, ...]
    """Regular expressions of the names that PyTorch gives this GPU."""
    sms: Quantity
    """Streaming multiprocessors. On a CPU: cores."""
    peak_tflops: Rates
    """Published peak without sparsity, by which MFU is counted. On a CPU the best measured product."""
    product_tflops: Rates
    """The best matrix product."""
    sustained_share: Quantity
    """Share of that rate that a whole training step keeps, when heat and power limit the clock."""
    memory_gib: Quantity
    context_gib: Quantity
    """Device memory that the CUDA context takes from every process."""
    nccl_gib: Quantity
    """Device memory that NCCL takes for each process group of more than one rank."""
    copy_gbps: Quantity
    """GB/s that a large copy reads and writes."""
    optimizer_gbps: Quantity | None
    """GB/s that the optimizer's update reads and writes. null: copy_gbps."""
    elementwise_gbps: Quantity | None
    """GB/s that norms, activations and residual sums read and write. null: copy_gbps."""
    launch_us: Quantity
    """Microseconds from one kernel to the next, if the host is ahead."""
    devices_per_node: Quantity
    in_node: Link
    between_nodes: Link
    nics_per_node: Quantity
    nics_per_ring: Quantity
    """Network cards that one collective over all devices of a node uses."""
    host_layer_us: Quantity
    """Microseconds in which the host starts the operations of one layer, forward or backward, without torch.compile."""
    host_step_us: Quantity
    """Microseconds of the host in a step, outside layers."""
    host_gbps: Quantity
    """GB/s between a device and the host's memory."""
    products: tuple[ProductTable, ...] = ()
    attention: tuple[AttentionCurve, ...] = ()
    cpu: CpuCosts | None = None
    """Costs that only matter on a CPU. null: not measured."""

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Every number by its dotted name."""
        return _quantities(self, "")

    def origins(self) -> dict[Origin, list[str]]:
        """The names of the numbers, tables and curves, by origin."""
        found: dict[Origin, list[str]] = {"published": [], "measured": [], "guess": []}
        for name, quantity in self.quantities():
            found[quantity.origin].append(name)
        for table in self.products:
            found[table.origin].append(f"products {table.precision}")
        for curve in self.attention:
            found[curve.origin].append(f"attention {curve.kernel} {curve.direction} {curve.head_dim}")
        if self.cpu is not None:
            found["measured"].append("cpu")
        return {origin: names for origin, names in found.items() if names}


def load_hardware(name: str) -> Hardware:
    """The record of a preset, or of a file if `name` has a slash or ends in .yaml.

    Raises ConfigError for an unknown name, a file that cannot be read, and a bad record.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        return read_hardware(Path(name))
    names = preset_names()
    if name not in names:
        near = did_you_mean(name, names)
        hint = f"{near}{' ' if near else ''}choose {', '.join(names)}, or give the file of a measured record"
        raise ConfigError([Problem(KEY, name, "is not a known machine", hint)])
    return read_hardware(FOLDER / f"{name}.yaml")


def preset_names() -> list[str]:
    """The machines in conf/hardware/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def hardware_of_device(device_name: str) -> Hardware | None:
    """The preset of a GPU by the name that PyTorch gives it, or None. A part of a GPU (MIG) has no preset."""
    if re.search(r"\bMIG\b", device_name):
        return None
    for name in preset_names():
        hardware = load_hardware(name)
        if any(re.search(pattern, device_name) for pattern in hardware.device_names):
            return hardware
    return None


def read_hardware(path: Path) -> Hardware:
    """The record in a file. Raises ConfigError if it cannot be read or has bad values, and names them all."""
    hint = "write one with `pretrain bench --record FILE`"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ConfigError([Problem(KEY, str(path), "there is no such file", hint)]) from None
    except OSError as error:
        raise ConfigError([Problem(KEY, str(path), f"cannot be read: {error.strerror}", hint)]) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        rule = f"is not valid YAML: {' '.join(str(error).split())}"
        raise ConfigError([Problem(KEY, str(path), rule, hint)]) from None
    try:
        hardware = to_record(values, Hardware, where=f"{path}: ")
    except ConfigError as error:
        raise ConfigError([_with_own_hint(problem) for problem in error.problems]) from None
    if problems := list(_problems(hardware, f"{path}: ")):
        raise ConfigError(problems)
    return hardware


def write_hardware(hardware: Hardware, path: Path, heading: str) -> None:
    """Write a record that `read_hardware` takes; `heading` becomes the comment at its top. The write is atomic."""
    if problems := list(_problems(hardware, f"{path}: ")):
        raise ConfigError(problems)
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    # default_flow_style=None: the innermost mappings, of which a measured record has hundreds, take one line each.
    values = _plain(dataclasses.asdict(hardware))
    text = yaml.safe_dump(values, sort_keys=False, width=120, allow_unicode=True, default_flow_style=None)
    write_durably(path, f"{comment}{text}".encode())


def _with_own_hint(problem: Problem | str) -> Problem | str:
    """A hint about `pretrain explain` is wrong here: it does not list the keys of a machine."""
    if isinstance(problem, str) or "explain" not in problem.hint:
        return problem
    return dataclasses.replace(problem, hint=f"compare it with {FOLDER / 'h100.yaml'}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _quantities(record: Any, prefix: str) -> Iterator[tuple[str, Quantity]]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Quantity):
            yield prefix + field.name, value
        elif isinstance(value, Rates | Link):
            yield from _quantities(value, f"{prefix}{field.name}.")


_MAY_BE_ZERO = ("latency_us", "hop_us", "context_gib", "nccl_gib", "launch_us", "host_layer_us", "host_step_us")


def _problems(hardware: Hardware, where: str) -> Iterator[Problem | str]:
    for name, quantity in hardware.quantities():
        may_be_zero = name.rpartition(".")[2] in _MAY_BE_ZERO
        if not math.isfinite(quantity.value) or quantity.value < 0 or (quantity.value == 0 and not may_be_zero):
            rule = "must not be negative" if may_be_zero else "must be greater than 0"
            yield Problem(f"{where}{name}.value", quantity.value, rule)
        if not quantity.source.strip():
            yield Problem(f"{where}{name}.source", quantity.source, "must say where the number comes from")
    if not 0 < hardware.sustained_share.value <= 1:
        yield Problem(f"{where}sustained_share.value", hardware.sustained_share.value, "must be at most 1")
    for number, table in enumerate(hardware.products):
        for row in table.products:
            if min(row.m, row.k, row.n) < 1 or not 0 < row.tflops < math.inf:
                yield Problem(f"{where}products.{number}", f"{row.m} x {row.k} x {row.n}", "must be greater than 0")
    for number, curve in enumerate(hardware.attention):
        name = f"{where}attention.{number}"
        if not curve.tflops:
            yield Problem(f"{name}.tflops", MISSING, "must have at least one length")
        for length, rate in curve.tflops.items():
            if not length.isdecimal() or int(length) < 1:
                yield Problem(f"{name}.tflops", length, "must be a number of tokens")
            elif not 0 < rate < math.inf:
                yield Problem(f"{name}.tflops.{length}", rate, "must be greater than 0")
        if curve.head_dim < 1:
            yield Problem(f"{name}.head_dim", curve.head_dim, "must be greater than 0")
    yield from _cpu_problems(hardware.cpu, where)
    for pattern in hardware.device_names:
        try:
            re.compile(pattern)
        except re.error:
            yield Problem(f"{where}device_names", pattern, "is not a valid regular expression")


def _cpu_problems(costs: CpuCosts | None, where: str) -> Iterator[Problem]:
    for name, value in [] if costs is None else costs.numbers():
        if not 0 <= value < math.inf:
            yield Problem(f"{where}cpu.{name}", value, "must not be negative")
