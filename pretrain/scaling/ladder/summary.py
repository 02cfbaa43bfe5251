"""The summary of a ladder in wandb: one run of its group, with the table, the fitted numbers and the plots."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.config.load import load_run_config
from pretrain.scaling.ladder.table import RESULTS, TIMES, Row
from pretrain.scaling.ladder.targets import Prediction
from pretrain.scaling.laws.study import Study

log = logging.getLogger(__name__)


def figures_of(study: Study, targets: Sequence[Prediction]) -> dict[str, float | str]:
    """The fitted numbers with their 95 % intervals, and the errors of the predictions."""
    figures: dict[str, float | str] = {"loss": study.points.loss, "points": len(study.points)}
    for name, each in study.intervals().items():
        figures |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    figures |= {f"{name}_not_identified": reason for name, reason in study.not_identified.items()}
    return figures | {f"error_{each.row.cell.name}": each.error for each in targets if each.error is not None}


def send_summary(
    folder: Path, rows: Sequence[Row], figures: Mapping[str, float | str] | None = None, images: Sequence[Path] = ()
) -> None:
    """Record the summary as the tracking of the ladder's runs says. A failure is only logged.

    `figures`: single results, such as the fitted exponents.
    """
    from pretrain.tracking.wandb_sink import Summary, log_summary

    tracking = load_run_config([*rows[0].cell.overrides]).tracking
    columns = (*RESULTS, *TIMES)
    totals: dict[str, float | str] = {
        "runs": len(rows),
        "finished_runs": sum(row.is_complete for row in rows),
        "gpu_hours": sum(row.gpu_hours for row in rows),
        **(figures or {}),
    }
    values = [[row.values[column] for column in columns] for row in rows]
    try:
        summary = Summary(f"{folder.name}-summary", folder.name, columns, values, totals, images)
        log_summary(tracking, folder, summary)
    except UserError:
        raise
    except Exception as error:
        log.warning("wandb failed, the summary is not recorded there: %s: %s", type(error).__name__, error)
