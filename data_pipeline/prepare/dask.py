"""Runs tasks on many machines through Dask: on an existing cluster, or on workers started as Slurm jobs.

Chosen over Ray because its executor has the interface of `concurrent.futures` and because it starts Slurm jobs itself.
Tried with both (distributed 2026.8, ray 2.58): tasks of a killed worker run on another worker, and tasks of a killed
driver are not started any more. All machines must see the data's folder under the same path and have the same version
of this program. Messages between them are pickled, so the network must be trusted.
"""

import importlib
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.config import SlurmConfig
from data_pipeline.errors import DataError, WorkInterrupted

SECONDS_TO_CONNECT = 30


@contextmanager
def dask_executor(scheduler: str) -> Iterator[Executor]:
    """Connect to the scheduler at an address such as tcp://node1:8786, or to the one in a scheduler file."""
    distributed = _require("distributed")
    is_file = scheduler.endswith(".json")
    if is_file and not Path(scheduler).exists():  # Dask would wait forever
        raise DataError(f"prepare.dask_scheduler={scheduler}: the file does not exist", "start the scheduler first")
    place = {"scheduler_file" if is_file else "address": scheduler}
    try:
        client = distributed.Client(timeout=SECONDS_TO_CONNECT, set_as_default=False, **place)
    except (OSError, ValueError) as error:
        raise DataError(
            f"prepare.dask_scheduler={scheduler}: cannot be reached ({error})", "start the scheduler first"
        ) from None
    with client, _faults(distributed):
        yield client.get_executor(pure=False)


@contextmanager
def slurm_executor(slurm: SlurmConfig) -> Iterator[Executor]:
    """Start workers as Slurm jobs, and cancel them at the end."""
    distributed, jobqueue = _require("distributed"), _require("dask_jobqueue")
    try:
        cluster = jobqueue.SLURMCluster(
            cores=slurm.cores,
            processes=slurm.cores,
            memory=slurm.memory,
            walltime=slurm.time,
            queue=slurm.partition,
            account=slurm.account,
            job_extra_directives=list(slurm.sbatch_flags),
        )
    except (OSError, ValueError) as error:
        raise DataError(f"prepare.executor=slurm: Dask cannot use Slurm here ({error})") from None
    with cluster:
        try:
            cluster.scale(jobs=slurm.jobs)
        except (OSError, RuntimeError) as error:
            raise DataError(f"prepare.executor=slurm: Slurm refuses the jobs ({error})") from None
        with distributed.Client(cluster, set_as_default=False) as client, _faults(distributed):
            yield client.get_executor(pure=False)


@contextmanager
def _faults(distributed: Any) -> Iterator[None]:
    try:
        yield
    except distributed.KilledWorker as error:
        raise WorkInterrupted(
            f"prepare: workers were killed repeatedly at the same task ({error.task}), as happens when memory runs out",
            "run the same command again, with more memory for each worker; the finished tasks are kept",
        ) from None
    except (distributed.comm.CommClosedError, TimeoutError) as error:
        raise WorkInterrupted(
            f"prepare: the connection to Dask's scheduler was lost ({error})",
            "run the same command again; the finished tasks are kept",
        ) from None


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise DataError(
            f"prepare.executor: needs the {package} package, which is not installed", "pip install 'pretrain[cluster]'"
        ) from None
