"""Installs the build of torch that fits this machine; env.sh runs it in the new environment, where only pip is.

On Linux the default build brings gigabytes of CUDA libraries: without an NVIDIA GPU a CPU build is taken, where one
can be had.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
INDEX_VARIABLE = "PRETRAIN_TORCH_INDEX"


@dataclass(frozen=True)
class Candidate:
    """The torch that pip would take."""

    version: str
    requires: tuple[str, ...]
    """Requirement strings from its metadata, with their markers."""

    @property
    def needs_cuda_libraries(self) -> bool:
        """Whether it brings NVIDIA's libraries along, gigabytes of them."""
        wanted = (line for line in self.requires if not re.search(r"\bextra\s*==", line))
        return any(re.match(r"(nvidia|cuda)[-_]", line) for line in wanted)


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        return check()
    requirement = torch_requirement(PYPROJECT)
    if is_installed(requirement):
        say(f"{metadata.version('torch')} is already installed (delete the environment to choose another build)")
        return 0
    return install(requirement, os.environ)


def torch_requirement(pyproject: Path) -> str:
    """The requirement on torch, as the project states it."""
    dependencies = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    (requirement,) = (line for line in dependencies if re.match(r"torch\b(?![-_.])", line))
    return str(requirement)


def is_installed(requirement: str) -> bool:
    """Whether this environment has a torch that meets the requirement."""
    # A bare environment has no other parser of versions.
    from pip._vendor.packaging.requirements import Requirement

    try:
        return Requirement(requirement).specifier.contains(metadata.version("torch"), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def install(requirement: str, environment: Mapping[str, str]) -> int:
    """Install torch; the exit status of whatever did it."""
    index = environment.get(INDEX_VARIABLE)
    if index:
        say(f"from ${INDEX_VARIABLE}")
        return pip("install", "--index-url", index, requirement)
    if sys.platform != "linux" or has_nvidia_gpu():
        return pip("install", requirement)
    candidate = pip_candidate(requirement)
    if candidate is None or not candidate.needs_cuda_libraries:
        return pip("install", requirement)
    say(f"no NVIDIA GPU here: looking for a CPU build (or set {INDEX_VARIABLE} to the package index to take it from)")
    if install_cpu_build(requirement):
        return 0
    say(f"found no CPU build: taking {candidate.version} with its CUDA libraries, several gigabytes;")
    say(f"to avoid that, stop and set {INDEX_VARIABLE} to a package index that has CPU builds of torch")
    return pip("install", requirement)


def has_nvidia_gpu() -> bool:
    """Whether the driver is loaded or sees a device."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    return (
        shutil.which("nvidia-smi") is not None
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    )


def pip_candidate(requirement: str) -> Candidate | None:
    """The version that pip would choose with the user's own settings; None if it finds none."""
    command = [*PIP, "install", "--dry-run", "--no-deps", "--quiet", "--ignore-installed", "--report", "-", requirement]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return parse_report(result.stdout) if result.returncode == 0 else None


def parse_report(report: str) -> Candidate:
    """Read pip's installation report for one package."""
    (item,) = json.loads(report)["install"]
    return Candidate(version=item["metadata"]["version"], requires=tuple(item["metadata"].get("requires_dist", ())))


def install_cpu_build(requirement: str) -> bool:
    """Whether a CPU build could be installed; uv knows where its makers publish them, so that this project need not."""
    with tempfile.TemporaryDirectory() as folder:
        if pip("install", "--target", folder, "uv") != 0:
            return False
        # What torch itself depends on is left to pip and the user's settings for it.
        command = [
            f"{folder}/bin/uv",
            "pip",
            "install",
            "--python",
            sys.executable,
            "--torch-backend=cpu",
            "--no-deps",
            requirement,
        ]
        patience = {"UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1"}
        return subprocess.run(command, env={**patience, **os.environ}).returncode == 0


def check() -> int:
    """Import torch and say what it can use."""
    import torch

    if torch.cuda.is_available():
        say(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
        return 0
    say(f"torch {torch.__version__} on the CPU")
    if has_nvidia_gpu():
        say("there is an NVIDIA GPU, but this build cannot use it: its driver may be too old. Update the driver,")
        say(f"or delete the environment and set {INDEX_VARIABLE} to a package index with a build for this driver")
    return 0


PIP = (sys.executable, "-m", "pip")


def pip(*arguments: str) -> int:
    """Run pip with the user's settings; its exit status."""
    return subprocess.run([*PIP, *arguments]).returncode


def say(line: str) -> None:
    """Print a line that env.sh passes on to the terminal."""
    print(f"torch: {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
