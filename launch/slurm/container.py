"""The container of each rank: flags for srun, a prefix for the command, and the Python that runs it.

The batch script sets three variables that launch.slurm.supervise reads; a script written by hand may set them too:
PRETRAIN_SRUN_FLAGS and PRETRAIN_COMMAND_PREFIX, JSON lists of words, and PRETRAIN_PYTHON, a program:
    srun FLAGS... PREFIX... PYTHON -m launch.slurm.rank_main ...
"""

import json
import os
import sys
from collections.abc import Mapping

from data_pipeline.errors import UserError
from pretrain.config.cluster import ClusterConfig

SRUN_FLAGS, COMMAND_PREFIX, PYTHON = "PRETRAIN_SRUN_FLAGS", "PRETRAIN_COMMAND_PREFIX", "PRETRAIN_PYTHON"


def container_variables(cluster: ClusterConfig, folder: str) -> dict[str, str]:
    """The variables for a container in which `folder` is mounted as the working directory; none without a container."""
    container = cluster.container
    if container.kind == "none":
        return {}
    assert container.image is not None
    mounts = [f"{folder}:{folder}", *container.mounts]
    # Set inside the container, because the image's own variables override those that srun passes on.
    inside = ["env", *(f"{name}={value}" for name, value in cluster.environment.items())] if cluster.environment else []
    if container.kind == "pyxis":
        flags = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
        flags.append(f"--container-workdir={folder}")
        prefix = inside
    else:
        binds = [word for mount in mounts for word in ("--bind", mount)]
        gpus = ["--nv"] if cluster.gpus_per_node else []
        flags, prefix = [], ["apptainer", "exec", *gpus, *binds, "--pwd", folder, container.image, *inside]
    return {SRUN_FLAGS: json.dumps(flags), COMMAND_PREFIX: json.dumps(prefix), PYTHON: "python3"}


def srun_flags(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Flags of srun for the container."""
    return _words(SRUN_FLAGS, environment)


def command_prefix(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The words before the Python of a rank."""
    return _words(COMMAND_PREFIX, environment)


def rank_python(environment: Mapping[str, str] = os.environ) -> str:
    """The Python of a rank: that of the container, or else this one."""
    return environment.get(PYTHON) or sys.executable


def _words(name: str, environment: Mapping[str, str]) -> list[str]:
    text = environment.get(name) or "[]"
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f'{name}={text}: must be a JSON list of words, as in ["--mpi=none"]')
    return words
