"""Tables of runs: columns by their names, and one clear error for each table that no law can be fitted to."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from pretrain.scaling.laws.exclude import Rules, apply_rules
from pretrain.scaling.laws.parametric import fit_parametric
from pretrain.scaling.laws.points import BadPoints, check_points, mean_of_seeds
from pretrain.scaling.laws.read_table import Columns, read_points, same_scale
from pretrain.scaling.laws.study import study
from tests.unit.scaling.ladders import ladder

ROWS = "name,N,D,loss\na,1e6,2e7,4.0\nb,2e6,4e7,3.5\n"


def table(tmp_path: Path, text: str, name: str = "runs.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("header", ["name,N,D,loss", "Run,params-no-embed,Tokens,val_loss", "cell,Model Size,D,L"])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, header: str) -> None:
    points = read_points(table(tmp_path, ROWS.replace("name,N,D,loss", header)))
    assert points.names == ["a", "b"] and list(points.losses) == [4.0, 3.5]
    assert list(points.flops) == [6 * 1e6 * 2e7, 6 * 2e6 * 4e7]


def test_tokens_follow_from_compute(tmp_path: Path) -> None:
    points = read_points(table(tmp_path, "N,flops,loss\n1e6,1.2e14,4\n"))
    assert list(points.tokens) == [pytest.approx(2e7)]


def test_size_without_embeddings_comes_first(tmp_path: Path) -> None:
    rows = "parameters,parameters_without_embeddings,D,loss\n9,5,7,3\n"
    assert read_points(table(tmp_path, rows)).size == "parameters_without_embeddings"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "the table is empty"),
        ("N,D,los\n1,2,3\n", "has no column for loss\n  hint: name it: --loss-column COLUMN"),
        ("N,loss\n1,3\n", "has no column for tokens or FLOPs\n  hint: name it: --tokens-column COLUMN"),
        ("D,loss\n1,3\n", "has no column for parameters\n  hint: name it: --size-column COLUMN"),
        ("N,D,loss\n1,2,3\n1,x,3\n", "line 3: D is 'x', not a number"),
        ("N,D,loss,tokenizer\n1,2,3,p\n2,3,4,q\n", "the losses are of 2 tokenizers: p, q"),
        ("N,D,bpb,loss,validation_set\n1,2,3,3,p\n2,3,4,4,q\n", "the losses are of 2 validation sets: p, q"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_error(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_points(table(tmp_path, rows))
    assert message in str(error.value) and "runs.csv" in str(error.value)


def test_bits_per_byte_compare_across_tokenizers(tmp_path: Path) -> None:
    path = table(tmp_path, "N,D,loss,bits_per_byte,tokenizer\n1,2,3,1.1,p\n2,3,4,1.0,q\n")
    assert list(read_points(path, Columns({"loss": "bits_per_byte"})).losses) == [1.1, 1.0]
    assert list(read_points(path, Columns(where={"tokenizer": "q"})).losses) == [4.0]


def test_a_column_or_value_that_is_missing_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, ROWS)
    for columns, message in (
        (Columns({"loss": "losss"}), "has no column 'losss'\n  hint: did you mean loss?"),
        (Columns(where={"names": "a"}), "--where names=a"),
        (Columns(where={"name": "c"}), "no row has name=c"),
    ):
        with pytest.raises(UserError) as error:
            read_points(path, columns)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c,3e6,6e7,nan", "c: loss is nan; it must be a number above 0\n  hint: leave the run out: --exclude 'c'"),
        ("c,-1,6e7,3", "c: N is -1; it must be a number above 0"),
        ("c,1e6,2e7,3", "a and c are the same cell: N=1e+06 D=2e+07"),
        ("c,3e6,6e7,3", "3 points remain, and the law of five parameters needs at least 5"),
    ],
)
def test_points_that_cannot_be_fitted_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(BadPoints) as error:
        fit_parametric(read_points(table(tmp_path, f"{ROWS}{row}\n")))
    assert message in str(error.value)


def test_runs_of_one_cell_with_other_seeds_are_averaged(tmp_path: Path) -> None:
    rows = "name,N,D,loss,seed\na,1,9,3,1\nb,1,9,5,2\nc,2,9,3,1\nd,2,9,3,1\n"
    kept = mean_of_seeds(read_points(table(tmp_path, rows)))
    assert [(point.name, point.loss) for point in kept.points] == [("a (2 seeds)", 4), ("c", 3), ("d", 3)]
    with pytest.raises(BadPoints, match="c and d are the same cell"):
        check_points(kept, 1, "law")


def test_each_point_that_is_left_out_has_its_rule(tmp_path: Path) -> None:
    rows = (
        "name,N,D,loss,steps,warmup_steps,diverged,role\nok,1,900,3,100,10,false,fit\nshort,2,900,3,5,10,false,fit\n"
        "nan,3,900,nan,100,10,true,fit\nbig,4,900,3,100,10,false,target\nfew,5,1,3,100,10,,fit\nhigh,6,900,9,100,,,\n"
        "mine,7,900,3,,,,\nrunning,8,900,,,,,\n"
    )
    points = read_points(table(tmp_path, rows))
    kept, excluded = apply_rules(points, Rules(highest=1, at_least_tokens=10, names=("mi*",)))
    assert kept.names == ["ok"]
    assert {each.point.name: each.rule for each in excluded} == {
        "short": "shorter than 1 times its warm-up",
        "nan": "diverged",
        "big": "a target of the ladder",
        "few": "fewer than 10 tokens",
        "high": "one of the 1 highest losses",
        "mine": "its name",
    }
    check_points(kept, 1, "law")


def test_a_pattern_without_a_point_is_refused() -> None:
    with pytest.raises(UserError, match="--exclude nothing-\\*: no point has such a name"):
        study(ladder(), Rules(names=("nothing-*",)))


def test_two_tables_must_be_on_one_scale(tmp_path: Path) -> None:
    one, other = (
        read_points(table(tmp_path, f"N,D,loss,tokenizer\n1,2,3,{name}\n", f"{name}.csv")) for name in ("p", "q")
    )
    same_scale(one, one)
    with pytest.raises(BadPoints, match="base and variant differ in the tokenizer: p and q"):
        same_scale(one, other)


def test_a_law_from_a_file_is_that_of_its_points(tmp_path: Path) -> None:
    points = ladder()
    rows = zip(points.parameters, points.tokens, points.losses, strict=True)
    text = "N,D,loss\n" + "".join(f"{float(n)!r},{float(d)!r},{float(loss)!r}\n" for n, d, loss in rows)
    read = read_points(table(tmp_path, text))
    assert np.array_equal(read.losses, points.losses)
    assert fit_parametric(read).law == fit_parametric(points).law
