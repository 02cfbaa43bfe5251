"""The summary of a ladder in wandb: one run of its group, with the table, the fitted numbers and the plots."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.config.load import load_run_config
from pretrain.scaling.ladder.table import RESULTS, TIMES, Row

log = logging.getLogger(__name__)


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
