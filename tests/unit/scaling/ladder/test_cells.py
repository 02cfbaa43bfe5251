"""The cells that a ladder file gives: sizes, lengths, rates and trunks, and files that are refused."""

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from pretrain.config.load import load_run_config
from pretrain.model.size import count_parameters
from pretrain.scaling.ladder.cells import Cell, build_cells
from pretrain.scaling.ladder.plan import plan_cells, plan_text
from pretrain.scaling.ladder.spec import read_spec
from pretrain.scaling.laws.hyperparameters import named_law
from tests.unit.scaling.ladder.files import CONTENT, SIZES, write_file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cells_of(folder: Path, *more: str, **changes: object) -> list[Cell]:
    return build_cells(read_spec(write_file(folder, **changes)), more)


def refusal(folder: Path, *more: str, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        cells_of(folder, *more, **changes)
    return str(caught.value)


def test_every_size_trains_for_every_length(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    assert [cell.name for cell in cells] == ["d1w32-0.1x", "d1w32-0.4x", "d2w64-0.1x", "d2w64-0.4x"]
    for cell, multiple in zip(cells, (0.1, 0.4, 0.1, 0.4), strict=True):
        config = load_run_config(cell.overrides)
        count = count_parameters(config.model, 300)
        assert (cell.parameters_without_embeddings, cell.parameters) == (count.layers + count.final_norm, count.total)
        assert cell.tokens == config.train.max_steps * config.train.global_batch_size * 32  # type: ignore[operator]
        assert cell.tokens == pytest.approx(multiple * 20 * cell.parameters_without_embeddings, abs=8 * 32)
        assert (config.run.dir, config.tracking.wandb_group) == (f"ladders/small/runs/{cell.name}", "small")
        labels = {"ladder": "small", "size": cell.size, "N": cell.counted, "D": cell.tokens}
        assert config.tracking.labels == labels


def test_widths_and_lengths_are_given_one_by_one(tmp_path: Path) -> None:
    sizes = {"layers": [2, 2], "widths": [32, 48], "head_size": 16}
    cells = cells_of(tmp_path, sizes=sizes, tokens={"lengths": [25_600, 51_200]})
    assert [cell.name for cell in cells] == ["d2w32-0.0256M", "d2w32-0.0512M", "d2w48-0.0256M", "d2w48-0.0512M"]
    assert [cell.tokens for cell in cells] == [25_600, 51_200] * 2


def test_initial_values_shrink_with_the_root_of_the_width(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, sizes={"layers": [1, 1], "widths": [16, 64], "head_size": 16, "init_scale": 0.4})
    assert [load_run_config(cell.overrides).model.init_std for cell in cells[::2]] == [0.1, 0.05]


def test_each_seed_has_its_trunk_and_branches(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, seeds=[3, 7], tokens={"multiples": [0.1, 0.4], "trunk": True})
    assert [load_run_config(cell.overrides).run.seed for cell in cells] == [3, 3, 7, 7] * 2
    assert all(cell.trunk is None or cell.trunk.endswith(cell.name[-6:]) for cell in cells)
    assert "seeds=[3,3]: must be different" in refusal(tmp_path, seeds=[3, 3])


def test_n_counts_embeddings_on_request(tmp_path: Path) -> None:
    cell = cells_of(tmp_path, count="all")[0]
    assert cell.counted == cell.parameters > cell.parameters_without_embeddings


def test_presets_are_sizes(tmp_path: Path) -> None:
    models = ["gpt3_125m", "gpt3_350m"]
    overrides = ["tokenizer.vocab_size=50257", "train.micro_batch_size=1"]
    cells = cells_of(tmp_path, overrides=overrides, sizes={"models": models}, tokens={"multiples": [1]})
    assert [(cell.size, round(cell.parameters / 1e6)) for cell in cells] == [("gpt3_125m", 125), ("gpt3_350m", 356)]


def test_branches_leave_their_trunk_before_the_decay(tmp_path: Path) -> None:
    rates = {"lr": {"coefficient": 1.0, "parameters_exponent": -0.5, "tokens_exponent": 0.1}}
    trunk, *branches = cells_of(tmp_path, tokens={"multiples": [0.1, 0.2, 0.4], "trunk": True}, rates=rates)[:3]
    assert trunk.name == "d1w32-0.4x" and trunk.trunk is None and len(branches) == 2
    configs = [load_run_config(cell.overrides) for cell in (trunk, *branches)]
    for cell, config in zip(branches, configs[1:], strict=True):
        fraction = config.lr_schedule.decay_fraction
        assert cell.branch_step == cell.steps - round(fraction * cell.steps) < trunk.branch_step + trunk.steps
        assert config.run.branch_from == f"{trunk.run_dir}/checkpoints/step-{cell.branch_step:08d}"
        assert cell.trained_tokens == (cell.steps - cell.branch_step) * 8 * 32
    assert configs[0].checkpoint.keep_steps == tuple(cell.branch_step for cell in branches)
    # One learning rate, batch and warmup for the whole trunk.
    assert len({(c.optim.lr, c.train.global_batch_size, c.lr_schedule.warmup_steps) for c in configs}) == 1


def test_a_trunk_needs_a_constant_phase(tmp_path: Path) -> None:
    trunk = {"multiples": [0.1, 0.4], "trunk": True}
    assert "tokens.trunk=true: needs a constant phase" in refusal(tmp_path, "lr_schedule=cosine", tokens=trunk)
    message = refusal(tmp_path, "lr_schedule.decay_fraction=1.0", tokens=trunk)
    assert "too few for a warmup of" in message


def test_budgets_give_isoflop_cells(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, tokens={"budgets": [1e10, "4e10"], "ratios": [2, 70]})
    assert {cell.budget for cell in cells} == {1e10, 4e10}
    for cell in cells:
        assert cell.flops == pytest.approx(cell.budget, rel=0.05)
        assert 1.9 <= cell.tokens / cell.counted <= 70.1
    message = refusal(tmp_path, tokens={"budgets": [1e10, 1e15]})
    assert "tokens.budgets=1000000000000000.0: no size trains on 2 to 400 tokens for each parameter" in message


def test_a_named_law_gives_rate_and_batch(tmp_path: Path) -> None:
    cell = cells_of(tmp_path, rates={"law": "step_law"}, tokens={"multiples": [1]})[0]
    law, wanted = named_law("step_law"), 20.0 * cell.counted
    assert cell.lr == pytest.approx(law.learning_rate(cell.counted, wanted), rel=1e-5)
    assert cell.batch == round(law.batch_tokens(cell.counted, wanted) / 32)
    assert load_run_config(cell.overrides).train.global_batch_size % 8 in (0, cell.batch % 8)
    assert "chinchila: unknown learning-rate law" in refusal(tmp_path, rates={"law": "chinchila"})


def test_the_micro_batch_divides_the_batch(tmp_path: Path) -> None:
    cell = cells_of(tmp_path, rates={"batch": {"coefficient": 12 * 32}}, tokens={"multiples": [1]})[0]
    config = load_run_config(cell.overrides)
    assert (config.train.global_batch_size, config.train.micro_batch_size) == (12, 6)


def test_duplicate_cells_are_refused(tmp_path: Path) -> None:
    assert "duplicate cells: d1w32-0.1x would be the same run" in refusal(tmp_path, tokens={"multiples": [0.1, 0.1]})
    again = {"sizes": {**SIZES, "layers": [2]}, "tokens": {"multiples": [0.4]}}
    assert "duplicate cells: d2w64-0.4x" in refusal(tmp_path, targets=again)
    assert "duplicate cells: d1w32-0.1x and d1w32-0.1001x" in refusal(tmp_path, tokens={"multiples": [0.1, 0.1001]})


def test_targets_stay_out_of_the_fit(tmp_path: Path) -> None:
    targets = {"sizes": {**SIZES, "layers": [3]}, "tokens": {"multiples": [0.2]}}
    cells = cells_of(tmp_path, targets=targets)
    assert [cell.name for cell in cells if cell.is_target] == ["d3w96-0.2x"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": {"layers": [1]}}, "sizes.width_per_layer=null: is needed with sizes.layers"),
        ({"sizes": {"layers": [1, 2], "widths": [32]}}, "sizes.widths=[32]: must be the width of each of sizes.layers"),
        ({"sizes": {**SIZES, "widths": [32, 32]}}, "sizes.widths=[32,32]: must be the width of each of sizes.layers"),
        ({"sizes": {"layers": [1], "models": ["tiny"]}}, "give one of them"),
        ({"tokens": {}}, "tokens.multiples=[], tokens.budgets=[], tokens.lengths=[]: give one of them"),
        ({"tokens": {"multiples": [-1]}}, "lengths must be greater than 0"),
        ({"tokens": {"multiples": [1], "ratios": [9, 3]}}, "must be a smallest and a largest number"),
        ({"name": "a/b"}, "must be letters, digits"),
        ({"sises": {}}, "sises"),
        ({"price": -1}, "price=-1"),
        ({"layout": "auto"}, "layout=auto: needs the time of each layout"),
        ({"sizes": {**SIZES, "head_size": 24}}, "sizes.head_size=24: does not divide the width 32"),
        ({"overrides": ["model.nosuch=1"]}, "model.nosuch=1: unknown key"),
    ],
)
def test_a_wrong_file_is_one_clear_error(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, **changes)


def test_a_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such ladder file") as caught:
        read_spec("tini")
    assert "did you mean tiny?" in str(caught.value)


def test_the_plan_adds_up(tmp_path: Path) -> None:
    spec = read_spec(write_file(tmp_path, tokens={"multiples": [0.1, 0.4], "trunk": True}))
    planned = plan_cells(spec, build_cells(spec))
    text = plan_text(planned).splitlines()
    assert len(text) == 1 + 4 + 1 and text[-1].startswith("4 runs")
    steps = sum(each.cell.steps - each.cell.branch_step for each in planned)
    assert f"{steps:,}" in text[-1].split()
    assert CONTENT["name"] == spec.name


def test_a_plan_with_a_machine_has_hours_and_cost(tmp_path: Path) -> None:
    changes: dict[str, object] = {"sizes": {"models": ["llama_8b"]}, "tokens": {"multiples": [1]}, "hardware": "h100"}
    overrides = ["engine=zero1_bf16", "cluster=gpu_8x80gb", "tokenizer.vocab_size=128256", "model.seq_length=8192"]
    rates = {"law": "own"}
    spec = read_spec(write_file(tmp_path, overrides=overrides, rates=rates, layout="auto", price=2.0, **changes))
    (planned,) = plan_cells(spec, build_cells(spec))
    parallel = planned.config.parallel
    assert planned.ranks == 8 and parallel.tp * parallel.pp > 1  # with pure data parallelism it does not fit
    assert planned.gpu_hours is not None and planned.cost == pytest.approx(2 * planned.gpu_hours)
    # An H100 does between 20 and 60 % of its 989 TFLOP/s in such a run.
    floor = planned.cell.flops / 989.4e12 / 3600
    assert floor / 0.6 < planned.gpu_hours < floor / 0.2
    assert "GPU-hours" in plan_text([planned])
