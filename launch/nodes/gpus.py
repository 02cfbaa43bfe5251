"""The GPUs of this node as nvidia-smi reports them, and the faults that are a reason not to train on them."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HOT_CELSIUS = 90
"""Data-centre GPUs slow down a little above it; before a run they are idle and far below."""
OCCUPIED_MIB = 2048
"""A driver and a persistence daemon use a few hundred; more belongs to another process."""
SMI_SECONDS = 30
"""Time after which the driver is considered hung."""

GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "temperature.gpu",
    "memory.used",
    "memory.total",
    "ecc.errors.uncorrected.volatile.total",
)
ROW_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
PROCESS_FIELDS = ("gpu_uuid", "pid", "used_memory", "process_name")
"""The name, in which there may be commas, comes last."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. A value is None if the card does not report it, such as ECC errors on consumer cards."""

    index: int
    uuid: str
    name: str
    celsius: int | None
    used_mib: int | None
    total_mib: int | None
    ecc_errors: int | None
    """Uncorrected errors since the driver was loaded."""
    rows_pending: bool
    """Memory rows will be replaced at the next reset of the GPU."""
    rows_failed: bool
    """No spare row is left."""
    processes: tuple[str, ...]
    """The processes that use it now."""


def parse_gpus(gpus: str, rows: str, processes: str) -> list[Gpu]:
    """Combine the answers to the three queries, CSV without header and units; raises ValueError for others."""
    remapped = {fields[0]: fields[1:] for fields in _fields(rows, len(ROW_FIELDS))}
    using: dict[str, list[str]] = {}
    for uuid, pid, mib, program in _fields(processes, len(PROCESS_FIELDS)):
        using.setdefault(uuid, []).append(f"process {pid} ({program}, {mib} MiB)")
    found = []
    for index, uuid, name, celsius, used, total, errors in _fields(gpus, len(GPU_FIELDS)):
        pending, failed = (_number(text) or 0 for text in remapped.get(uuid, ["0", "0"]))
        found.append(
            Gpu(
                index=int(index),
                uuid=uuid,
                name=name,
                celsius=_number(celsius),
                used_mib=_number(used),
                total_mib=_number(total),
                ecc_errors=_number(errors),
                rows_pending=pending > 0,
                rows_failed=failed > 0,
                processes=tuple(using.get(uuid, ())),
            )
        )
    return found


def gpu_faults(gpus: Sequence[Gpu], wanted: int) -> Iterator[str]:
    """The faults of the GPUs that this job was given, with what to do."""
    if len(gpus) < wanted:
        seen = ", ".join(str(gpu.index) for gpu in gpus) or "none"
        yield f"{len(gpus)} of {wanted} GPUs answer (seen: {seen}; hint: see `nvidia-smi -L`, `dmesg | grep -i xid`)"
    for gpu in gpus:
        named = f"GPU {gpu.index} ({gpu.name}, {gpu.uuid})"
        if gpu.ecc_errors:
            yield f"{named}: {gpu.ecc_errors} uncorrected memory errors (hint: reset the GPU or reboot the node)"
        if gpu.rows_failed:
            yield f"{named}: memory rows could not be remapped (hint: have the GPU replaced)"
        elif gpu.rows_pending:
            yield f"{named}: memory rows wait to be remapped (hint: reset the GPU or reboot the node)"
        if gpu.celsius is not None and gpu.celsius >= HOT_CELSIUS:
            yield f"{named}: {gpu.celsius} degrees Celsius before the start (hint: look at its cooling)"
        if gpu.used_mib is not None and gpu.used_mib > OCCUPIED_MIB:
            users = ", ".join(gpu.processes) or "processes that are not shown"
            yield f"{named}: {gpu.used_mib} MiB are used by {users} (hint: end them)"


def given_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs of this job. A node may have others that belong to other jobs."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(gpus)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [gpu for gpu in gpus if any(name == str(gpu.index) or _is_uuid(name, gpu.uuid) for name in names)]


def look_at_gpus(wanted: int) -> list[str]:
    """Run nvidia-smi; returns the faults of this node's GPUs."""
    try:
        gpus = parse_gpus(
            _ask("gpu", GPU_FIELDS), _ask("remapped-rows", ROW_FIELDS), _ask("compute-apps", PROCESS_FIELDS)
        )
    except FileNotFoundError:
        return [
            f"{wanted} GPUs are asked for and there is no nvidia-smi (hint: install the driver, or ask for no GPUs)"
        ]
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi does not answer within {SMI_SECONDS} s: the driver hangs (hint: reboot the node)"]
    except (subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stdout", None) or str(error)
        return [f"nvidia-smi failed: {' '.join(said.split())} (hint: look at `dmesg | grep -i nvrm`)"]
    return list(gpu_faults(given_gpus(gpus), wanted))


def _ask(what: str, fields: Sequence[str]) -> str:
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    # A card or an old driver may not know a query and fail: for rows and processes that is not a fault.
    if done.returncode and what == "gpu":
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout + done.stderr)
    return "" if done.returncode else done.stdout


def _fields(text: str, count: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",", count - 1)]
        if len(fields) != count:
            if line.strip():
                raise ValueError(f"unexpected answer {line!r}")
            continue
        yield fields


def _number(text: str) -> int | None:
    """None for [N/A], [Not Supported] and the like; Yes and No count as 1 and 0."""
    if text in ("Yes", "No"):
        return int(text == "Yes")
    return int(text) if text.isdecimal() else None


def _is_uuid(name: str, uuid: str) -> bool:
    """CUDA accepts any prefix that is not ambiguous."""
    return len(name) > 4 and uuid.startswith(name)
