"""The plan of a ladder: every run with its size, length, rates, layout, planned time and cost, before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.planner.choice import machine_of, sized
from pretrain.planner.plan import GIB, vocabulary
from pretrain.planner.time.hardware import Hardware, load_hardware
from pretrain.scaling.ladder.cells import Cell
from pretrain.scaling.ladder.forecast import Forecast, forecast
from pretrain.scaling.ladder.spec import LadderSpec
from pretrain.tracking.console import short_number


@dataclass(frozen=True)
class PlannedCell:
    """One run, with what it is planned to take."""

    cell: Cell
    config: RunConfig
    ranks: int
    step: Forecast | None = None
    """None: no machine is named."""
    price: float | None = None
    """The price of one GPU-hour."""

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all ranks together; a branch does not pay for its trunk."""
        if self.step is None:
            return None
        return self.step.seconds * (self.cell.steps - self.cell.branch_step) * self.ranks / 3600

    @property
    def cost(self) -> float | None:
        hours = self.gpu_hours
        return None if hours is None or self.price is None else hours * self.price

    def as_json(self) -> dict[str, object]:
        cell, parallel = self.cell, self.config.parallel
        return {
            "cell": cell.name,
            "size": cell.size,
            "is_target": cell.is_target,
            "parameters_without_embeddings": cell.parameters_without_embeddings,
            "parameters": cell.parameters,
            "tokens": cell.tokens,
            "trained_tokens": cell.trained_tokens,
            "flops": cell.flops,
            "steps": cell.steps,
            "global_batch_size": cell.batch,
            "lr": cell.lr,
            "trunk": cell.trunk,
            "branch_step": cell.branch_step,
            "ranks": self.ranks,
            "tp": parallel.tp,
            "pp": parallel.pp,
            "micro_batch_size": self.config.train.micro_batch_size,
            "seconds_step": None if self.step is None else self.step.seconds,
            "gpu_hours": self.gpu_hours,
            "cost": self.cost,
        }


def plan_cells(
    spec: LadderSpec, cells: Sequence[Cell], check: Callable[[RunConfig], object] = lambda config: None
) -> list[PlannedCell]:
    """The plan of each cell; `check` raises UserError for a run that cannot work."""
    hardware = None if spec.hardware is None else load_hardware(spec.hardware)
    return [_planned(spec, cell, check, hardware) for cell in cells]


def _planned(
    spec: LadderSpec, cell: Cell, check: Callable[[RunConfig], object], hardware: Hardware | None
) -> PlannedCell:
    config = load_run_config([*cell.overrides])
    check(config)
    ranks, (vocab_size, _) = max(config.cluster.ranks, 1), vocabulary(config)
    memory = config.cluster.gpu_memory_gib
    if config.train.micro_batch_size == "auto" and memory is not None:
        config = sized(config, vocab_size, ranks, int(memory * GIB), machine_of(config))
    step = None
    if hardware is not None and config.train.micro_batch_size != "auto":
        step = forecast(config, vocab_size, ranks, hardware)
    return PlannedCell(cell, config, ranks, step, spec.price)


HEAD = (
    *("cell", "N", "with embeddings", "D", "D/N", "C = 6ND", "steps", "batch", "lr", "layout", "micro"),
    *("GPU-hours", "cost", "from"),
)


def plan_text(planned: Sequence[PlannedCell]) -> str:
    """The table with totals; columns that are empty for all cells are left out."""
    rows = [_row(each) for each in planned]
    hours, costs = [each.gpu_hours for each in planned], [each.cost for each in planned]
    total = [""] * len(HEAD)
    total[0] = f"{len(planned)} runs"
    total[3] = short_number(sum(each.cell.trained_tokens for each in planned))
    total[5] = f"{sum(each.cell.trained_flops for each in planned):.3g}"
    total[6] = f"{sum(each.cell.steps - each.cell.branch_step for each in planned):,}"
    total[11] = _number(sum(hour for hour in hours if hour is not None)) if any(hours) else ""
    total[12] = f"{sum(cost for cost in costs if cost is not None):,.2f}" if any(costs) else ""
    shown = [column for column in range(len(HEAD)) if any(row[column] for row in rows)]
    table = [[row[column] for column in shown] for row in [list(HEAD), *rows, total]]
    return "".join(line + "\n" for line in aligned(table))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _row(each: PlannedCell) -> list[str]:
    cell, parallel = each.cell, each.config.parallel
    layout = f"{each.ranks} x tp{parallel.tp} pp{parallel.pp}" if each.ranks > 1 else "1 rank"
    origin = f"step {cell.branch_step:,} of {cell.trunk}" if cell.trunk else ""
    hours, cost = each.gpu_hours, each.cost
    return [
        f"{cell.name} (target)" if cell.is_target else cell.name,
        short_number(cell.parameters_without_embeddings),
        short_number(cell.parameters),
        short_number(cell.tokens),
        f"{cell.tokens / cell.counted:.1f}",
        f"{cell.flops:.3g}",
        f"{cell.steps:,}",
        str(cell.batch),
        f"{cell.lr:.3g}",
        layout,
        str(each.config.train.micro_batch_size),
        "" if hours is None else _number(hours),
        "" if cost is None else f"{cost:,.2f}",
        origin,
    ]


def _number(hours: float) -> str:
    return f"{hours:.4f}" if hours < 1 else f"{hours:,.1f}"
