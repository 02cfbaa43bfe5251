"""What a run was made with: source revision, package versions, machine. Nothing of it is taken from the environment."""

import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.tracking.files import replace_file

DESCRIPTION_FILE = "description.json"

_SOURCE = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "pretrain",
    "torch",
    "deepspeed",
    "megatron-core",
    "sentencepiece",
    "webdataset",
    "wandb",
    "hydra-core",
    "numpy",
)


def describe_environment() -> dict[str, Any]:
    """Git revision (None outside a checkout), versions, host, device and cores, ready for JSON."""
    return {
        "git": _git_state(_SOURCE),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": _device_name(),
        "cores": os.cpu_count(),
    }


def write_description(run_dir: Path, description: Mapping[str, object]) -> None:
    """Store what a run is in its folder, where the report reads it."""
    content = json.dumps(description, indent=2, default=str, ensure_ascii=False)
    replace_file(run_dir / DESCRIPTION_FILE, f"{content}\n".encode())


def _git_state(source: Path) -> dict[str, Any] | None:
    """Revision of the checkout at `source` and whether tracked files differ from it."""
    top, revision = _git(source, "rev-parse", "--show-toplevel"), _git(source, "rev-parse", "HEAD")
    # An installed copy may lie inside somebody else's checkout, whose revision would be a lie.
    if top is None or revision is None or Path(top).resolve() != source:
        return None
    return {"revision": revision, "dirty": bool(_git(source, "status", "--porcelain", "--untracked-files=no"))}


def _git(source: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR and its like point to the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(source), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
