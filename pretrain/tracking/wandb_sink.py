"""Weights & Biases: one wandb run per run folder, also after resumes."""

import dataclasses
import logging
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.storage.atomic_write import write_durably
from pretrain.config.errors import RunError
from pretrain.config.redact import without_secrets
from pretrain.config.run import RunConfig, TrackingConfig
from pretrain.tracking.metrics_file import Kind, Values
from pretrain.tracking.pace import ValidationSizes, series_name

RUN_ID_FILE = "wandb_run_id"

_logger = logging.getLogger(__name__)

# wandb only carries what it is given: no console capture, no code, no git, no machine statistics, nothing printed.
_QUIET_SETTINGS: dict[str, object] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    # Seconds. A dead network must neither hold up the start nor the end of a run: what is unsent stays on disk.
    "init_timeout": 30,
    "finish_timeout": 120,
    "login_timeout": 5,
}


class WandbSink:
    """Logs records as `series/name` to one wandb run, with its files in run_dir/wandb."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        description: Mapping[str, object],
        sizes: ValidationSizes | None = None,
    ) -> None:
        import wandb

        self._sizes = sizes
        self._folder = run_dir / "wandb"
        self._id = _run_id(run_dir)
        self._mode: Literal["online", "offline"] = "online" if config.tracking.wandb == "online" else "offline"
        arguments: dict[str, Any] = {
            "id": self._id,
            "resume": "allow",
            "name": config.run.name,
            "project": config.tracking.wandb_project,
            "entity": config.tracking.wandb_entity,
            "group": config.tracking.wandb_group,
            "dir": str(run_dir),
            "config": {**without_secrets(dataclasses.asdict(config)), "description": dict(description)},
            "allow_val_change": True,
        }
        check_wandb_login(config.tracking)
        try:
            self._run = wandb.init(mode=self._mode, settings=_settings(), **arguments)
        except wandb.errors.AuthenticationError as error:
            raise RunError(f"tracking.wandb=online: {error}", _HINT) from None
        except wandb.errors.CommError as error:
            _logger.warning("wandb cannot be reached and records offline: %s", error)
            # The service holds the id for the start that failed. If another process started it, teardown leaves it
            # running, so it must not be used again.
            wandb.teardown()
            os.environ.pop("WANDB_SERVICE", None)
            self._mode = "offline"
            self._run = wandb.init(mode=self._mode, settings=_settings(), **arguments)

    def log(self, kind: Kind, step: int, values: Values) -> None:
        series = series_name(kind, values, self._sizes)
        self._run.log({f"{series}/{name}": value for name, value in values.items()}, step=step)

    def close(self, outcome: str) -> None:
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=0 if outcome in ("finished", "stopped") else 1)
        if self._mode == "offline":
            # A resumed run has one such folder for each start; wandb sends them in order, as one run.
            folders = f"{shlex.quote(str(self._folder))}/offline-run-*-{self._id}"
            _logger.info("To send this run to wandb: wandb sync %s", folders)


@dataclass(frozen=True)
class Summary:
    """The results of several runs, which wandb shows as one more run of their group."""

    name: str
    group: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    figures: Mapping[str, float | str]
    """Single results, by name."""
    images: Sequence[Path] = ()


def log_summary(tracking: TrackingConfig, folder: Path, summary: Summary) -> None:
    """Record a summary in `folder`/wandb, as a run that is the same at each call; nothing if tracking.wandb=off.

    Raises RunError if wandb is online and there is no API key.
    """
    if tracking.wandb == "off":
        return
    import wandb

    check_wandb_login(tracking)
    run = wandb.init(
        mode="online" if tracking.wandb == "online" else "offline",
        settings=_settings(),
        id=_run_id(folder),
        resume="allow",
        name=summary.name,
        project=tracking.wandb_project,
        entity=tracking.wandb_entity,
        group=summary.group,
        job_type="summary",
        dir=str(folder),
    )
    run.log({"table": wandb.Table(columns=list(summary.columns), data=[list(row) for row in summary.rows])})
    run.log({path.stem: wandb.Image(str(path)) for path in summary.images})
    run.summary.update(dict(summary.figures))
    run.finish()


_HINT = "run `wandb login`, set WANDB_API_KEY, or choose tracking=wandb_offline"


def check_wandb_login(tracking: TrackingConfig) -> None:
    """Raise RunError if tracking.wandb=online and there is no API key; asks and writes nothing."""
    if tracking.wandb != "online":
        return
    import wandb

    wandb.setup(_settings())
    try:
        if not wandb.login(prompt=False, verify=False):
            raise RunError("tracking.wandb=online: there is no API key for wandb", _HINT)
    except wandb.errors.AuthenticationError as error:
        raise RunError(f"tracking.wandb=online: {error}", _HINT) from None


def _settings() -> Any:
    import wandb

    # Names with x_ come and go between versions of wandb; the record does not depend on any of them.
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in _QUIET_SETTINGS.items() if name in known})


def forget_wandb_run(run_dir: Path) -> None:
    """Let the next start be a new wandb run, because wandb does not accept a step twice."""
    (run_dir / RUN_ID_FILE).unlink(missing_ok=True)


def _run_id(run_dir: Path) -> str:
    """The id of the wandb run of this folder, made at its first start."""
    path = run_dir / RUN_ID_FILE
    if not path.exists():
        write_durably(path, f"{secrets.token_hex(4)}\n".encode())
    return path.read_text(encoding="ascii").strip()
