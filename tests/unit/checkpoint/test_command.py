"""`pretrain checkpoint` says what is there, finds every damage, deletes only what may go, and answers in exit codes."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pretrain import cli
from pretrain.checkpoint import inventory, tensor_stats, verify
from pretrain.checkpoint.inventory import look_at
from pretrain.checkpoint.manifest import digest_of
from pretrain.exit_codes import ExitCode
from pretrain.run.lock import hold_run_folder
from tests.golden.make_checkpoint import DIGESTS
from tests.support.checkpoints import (
    change_json,
    change_manifest,
    checkpoint_of,
    flip_a_bit,
    make_run,
    write_checkpoint,
)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `pretrain checkpoint ...` here; exit code and both streams."""

    def run(*words: object) -> tuple[int, str, str]:
        # Not `main`, which ends this process when a command returns 1.
        code = cli.run_command(*cli.parse_command_line(["checkpoint", *map(str, words)]))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder: whole, whole, a file cut short, and what was left of a save and a deletion."""
    folder = make_run(tmp_path / "run", 2, 4, 6)
    (checkpoint_of(folder, 6) / "__1_0.distcp").write_bytes(b"short")
    (folder / "checkpoints" / "step-00000008.partial").mkdir()
    (folder / "checkpoints" / "step-00000008.partial" / "__0_0.distcp").write_bytes(b"half")
    (folder / "checkpoints" / "step-00000001.deleting").mkdir()
    return folder


def names(run: Path) -> list[str]:
    return sorted(path.name.removeprefix("step-0000000") for path in (run / "checkpoints").iterdir())


# list


def test_list_shows_folders_layouts_and_the_next_resume(command: Command, run: Path) -> None:
    code, out, _ = command("list", run)
    assert code == 0
    head, *rows = [line.split() for line in out.splitlines()]
    assert head == ["checkpoint", "step", "tokens", "saved", "size", "by"]
    said = {row[0].removeprefix("step-0000000"): " ".join(row[1:]) for row in rows}
    assert list(said) == ["1.deleting", "2", "4", "6", "8.partial"]
    assert said["2"].endswith("KiB tp2 pp1 vp1 dp2 ZeRO-3 fp32 whole") and "2025-01-01T00:00:00+00:00" in said["2"]
    assert said["4"].endswith("whole, the next resume takes it")
    assert "fp32 __1_0.distcp has 5 bytes instead of" in said["6"]
    assert said["8.partial"].endswith("left over: unfinished save")
    assert said["1.deleting"].endswith("left over: unfinished deletion")


def test_list_finds_a_flipped_bit_only_with_digests(command: Command, run: Path) -> None:
    flip_a_bit(checkpoint_of(run, 4) / "__0_0.distcp")
    by_size, by_digest = (json.loads(command("list", run, "--json", *more)[1]) for more in ((), ("--digests",)))
    assert [row["step"] for row in by_size if row["next_resume"]] == [4]
    assert [row["step"] for row in by_digest if row["next_resume"]] == [2]
    (damaged,) = [row for row in by_digest if row["step"] == 4]
    assert "__0_0.distcp is damaged" in damaged["faults"][0] and not damaged["whole"]


def test_list_takes_a_run_its_checkpoints_and_a_single_one(command: Command, run: Path) -> None:
    rows = {path: json.loads(command("list", path, "--json")[1]) for path in (run, run / "checkpoints")}
    assert rows[run] == rows[run / "checkpoints"]
    assert json.loads(command("list", checkpoint_of(run, 2), "--json")[1])[0]["tokens"] == 768


@pytest.mark.parametrize(
    ("action", "where"),
    [
        ("list", (inventory, "read_manifest")),
        ("verify", (inventory, "read_manifest")),
        ("verify", (verify, "read_index")),
    ],
)
def test_a_checkpoint_deleted_by_a_live_run_is_not_a_fault(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, action: str, where: tuple[ModuleType, str]
) -> None:
    shutil.rmtree(checkpoint_of(run, 6))
    read = getattr(*where)

    def deleted_first(folder: Path) -> Any:
        if folder == checkpoint_of(run, 2):
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(*where, deleted_first)
    code, out, _ = command(action, run)
    assert code == 0 and "step-00000004" in out and "step-00000002" not in out


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--json"), ("diff",)])
@pytest.mark.parametrize("where", [(inventory, "read_index"), (tensor_stats, "read_chunk")])
def test_a_checkpoint_deleted_while_it_is_read_is_an_error(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], where: tuple[ModuleType, str]
) -> None:
    other, doomed = shutil.copytree(run, run.with_name("other")), checkpoint_of(run, 4)
    read = getattr(*where)

    def deleted_first(*arguments: Any) -> Any:
        shutil.rmtree(doomed, ignore_errors=True)
        return read(*arguments)

    monkeypatch.setattr(*where, deleted_first)
    code, out, err = command(words[0], run, *([other] if words[0] == "diff" else []), *words[1:])
    assert (code, out) == (2, "") and f"{doomed} was deleted while it was read" in err


def test_a_folder_has_a_size_while_it_is_deleted(tmp_path: Path) -> None:
    def fill_and_delete() -> None:
        while not done.is_set():
            for name in ("a", "b", "c"):
                (tmp_path / "step" / name).mkdir(parents=True)
                (tmp_path / "step" / name / "file").write_bytes(b"12345")
            shutil.rmtree(tmp_path / "step")

    done = threading.Event()
    thread = threading.Thread(target=fill_and_delete)
    thread.start()
    try:
        assert {inventory.bytes_below(tmp_path) for _ in range(3000)} <= {0, 5, 10, 15}
    finally:
        done.set()
        thread.join()


def test_list_imports_no_torch(run: Path) -> None:
    program = (
        "import sys\nfrom pretrain.cli import main\n"
        f"try: main(['checkpoint', 'list', {str(run)!r}, '--digests'])\n"
        "finally: assert not {'torch', 'numpy', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("action", ["list", "inspect", "verify"])
def test_a_path_that_is_not_a_run_is_an_error(command: Command, tmp_path: Path, action: str) -> None:
    code, out, err = command(action, tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err == (
        f"pretrain: error: {tmp_path}/nowhere: no such folder\n"
        "  hint: give a run folder, such as runs/NAME, or a checkpoint in it\n"
    )
    code, _, err = command(action, tmp_path)
    assert (
        code == 2 and "neither a run folder (it has no checkpoints/) nor a checkpoint (it has no manifest.json)" in err
    )


def test_a_run_without_checkpoints_is_listed_as_empty(command: Command, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert command("list", tmp_path)[:2] == (0, f"{tmp_path}: no checkpoint yet\n")
    code, _, err = command("inspect", tmp_path)
    assert code == 2 and f"{tmp_path}: no whole checkpoint" in err


# inspect


def test_inspect_shows_the_newest_whole_one(command: Command, run: Path) -> None:
    code, out, _ = command("inspect", run, "--match", "weight/*norm*")
    assert code == 0 and out.startswith(str(checkpoint_of(run, 4)))
    for words in ("run          name=golden", "tp2 pp1 vp1 dp2 ZeRO-3 fp32", "num_layers=1", "torch=", "step=4"):
        assert words in out
    tensors = out.split("\n\n")[1].splitlines()
    assert " ".join(tensors[0].split()) == "tensor shape dtype chunks files norm least greatest NaN inf"
    assert [line.split()[0] for line in tensors[1:]] == sorted(
        name for name in json.loads(DIGESTS.read_text()) if name.startswith("weight/") and "norm" in name
    )


def test_inspect_json_has_every_tensor_and_may_skip_values(command: Command, run: Path) -> None:
    facts = json.loads(command("inspect", checkpoint_of(run, 2), "--json")[1])
    assert facts["layout"]["dp"] == 2 and facts["data"]["vocab_size"] == 91 and facts["state"]["position"] == 48
    shapes = {tensor["name"]: tensor["shape"] for tensor in facts["tensors"]}
    assert shapes == {name: record["shape"] for name, record in json.loads(DIGESTS.read_text()).items()}
    assert all(tensor["norm"] > 0 and tensor["nan"] == tensor["inf"] == 0 for tensor in facts["tensors"])
    data = checkpoint_of(run, 2) / "__0_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))
    code, out, _ = command("inspect", checkpoint_of(run, 2), "--no-values", "--json")
    assert code == 0 and "norm" not in json.loads(out)["tensors"][0]
    code, _, err = command("inspect", checkpoint_of(run, 2))
    assert code == 2 and "__0_0.distcp: bytes" in err and "do not hold a tensor" in err


# verify


def test_verify_prints_a_line_for_each_fault(command: Command, run: Path) -> None:
    code, out, _ = command("verify", checkpoint_of(run, 2))
    assert (code, out) == (
        0,
        f"{checkpoint_of(run, 2)}: whole: 9 files, {len(json.loads(DIGESTS.read_text()))} tensors\n",
    )
    flip_a_bit(checkpoint_of(run, 4) / "__2_0.distcp")
    (checkpoint_of(run, 4) / "random-00001.safetensors").unlink()
    code, out, _ = command("verify", run)
    lines = [line.removeprefix(f"{run}/checkpoints/step-0000000") for line in out.splitlines()]
    assert code == 1 and lines[0].startswith("2: whole")
    assert sorted(line.split(" ")[0] for line in lines[1:]) == [
        "4/__2_0.distcp",
        "4/random-00001.safetensors",
        "6/__1_0.distcp",
    ]


def test_verify_finds_a_wrong_index_whose_digest_is_right(command: Command, run: Path) -> None:
    folder = checkpoint_of(run, 2)
    change_json(folder / "tensors.json", lambda index: next(iter(index.values()))["chunks"].pop())
    change_manifest(folder, lambda m: m["files"].update({"tensors.json": digest_of(folder / "tensors.json")}))
    code, out, _ = command("verify", folder)
    assert code == 1 and "elements are in no chunk" in out and len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda manifest: manifest.update(format_version=3),
            "has format version 3, but this program reads versions up to 2",
        ),
        (lambda manifest: manifest["files"].update({"../../x": manifest["files"]["tensors.json"]}), "is damaged"),
        (lambda manifest: manifest["files"].update(x={"bytes": "9", "sha256": ""}), "is damaged"),
        (lambda manifest: manifest["state"].pop("step"), "is damaged: 'step' is missing"),
        (lambda manifest: manifest["state"].pop("position"), "is damaged: 'position' is missing"),
        (lambda manifest: manifest["state"].update(step="5"), "is damaged: state.step is '5'"),
        (lambda manifest: manifest["state"].update(train_seconds=None), "is damaged: state.train_seconds is null"),
        (lambda manifest: manifest["state"].update(nothing=1), "is damaged"),
        (lambda manifest: manifest.pop("counters"), "is damaged: 'counters' is missing"),
        (lambda manifest: manifest["counters"].clear(), "is damaged: 'adam_steps' is missing"),
        (lambda manifest: manifest["layout"].update(tp=True), "is damaged: layout.tp is true"),
        (lambda manifest: manifest.update(dataset_digest=7), "is damaged: dataset_digest is 7"),
        (lambda manifest: manifest["state"].update(step=4), "holds step 4: the folder was renamed"),
    ],
)
def test_an_unusable_manifest_is_reported(command: Command, run: Path, change: Any, words: str) -> None:
    change_manifest(checkpoint_of(run, 2), change)
    code, out, _ = command("verify", checkpoint_of(run, 2))
    assert code == 1 and words in out and len(out.splitlines()) == 1


# prune


def test_prune_keeps_the_newest_multiples_and_damaged_ones(command: Command, run: Path) -> None:
    make_run(run, 5, 7, 8, 9)
    before = names(run)
    dry = command("prune", run, "--keep-last", 2, "--keep-every", 4, "--dry-run")
    assert dry[0] == 0 and names(run) == before and not (run / "run.lock").exists()
    code, out, _ = command("prune", run, "--keep-last", 2, "--keep-every", 4)
    assert code == 0 and names(run) == ["4", "6", "8", "9"]
    assert out == dry[1].replace("would delete", "deleted").replace("would be freed", "freed")
    assert "deleted step-00000008.partial (left over: unfinished save, 4 B)" in out
    assert "deleted step-00000007 (whole, " in out and "kept step-00000006 (" in out
    assert float(out.splitlines()[-1].split()[0]) > 700  # three of some 250 KiB


def test_prune_never_deletes_the_newest_whole_one(command: Command, run: Path) -> None:
    flip_a_bit(checkpoint_of(run, 4) / "__0_0.distcp")  # of the right size
    code, out, _ = command("prune", run, "--keep-last", 1)
    assert code == 0 and names(run) == ["2", "4", "6"]
    assert "kept step-00000004 (" in out and "__0_0.distcp is damaged" in out


def test_prune_removes_a_link_and_not_its_target(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", 2, 4)
    for name in ("step-00000002", "step-00000008.partial"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    shutil.rmtree(tmp_path / "elsewhere" / "step-00000002")
    checkpoint_of(run, 2).rename(tmp_path / "elsewhere" / "step-00000002")
    for name in ("step-00000002", "step-00000008.partial"):
        (run / "checkpoints" / name).symlink_to(tmp_path / "elsewhere" / name)
    code, out, _ = command("prune", run, "--keep-last", 1)
    assert code == 0 and names(run) == ["4"] and out.endswith("\n0 B freed\n")
    assert look_at(tmp_path / "elsewhere" / "step-00000002", digests=True).is_whole
    assert caplog.text.count("is a symbolic link: the link is removed, its target stays") == 2


def test_prune_leaves_a_checkpoint_of_a_newer_program(command: Command, run: Path) -> None:
    change_manifest(checkpoint_of(run, 2), lambda manifest: manifest.update(format_version=3))
    command("prune", run, "--keep-last", 1)
    assert names(run) == ["2", "4", "6"]


def test_prune_refuses_while_a_live_process_holds_the_run(command: Command, run: Path) -> None:
    before = names(run)
    with hold_run_folder(run):
        code, _, err = command("prune", run, "--keep-last", 1)
    assert code == ExitCode.IN_USE and "in use by another live process" in err and names(run) == before


def test_prune_wants_a_run_and_at_least_one_to_keep(command: Command, run: Path) -> None:
    code, _, err = command("prune", run, "--keep-last", 0)
    assert code == 2 and "--keep-last 0: at least 1 is kept" in err
    code, _, err = command("prune", checkpoint_of(run, 2), "--keep-last", 1)
    assert code == 2 and "not the folder of a run" in err


# diff


def test_diff_of_equal_checkpoints_is_empty(command: Command, run: Path) -> None:
    copy = Path(shutil.copytree(checkpoint_of(run, 4), run.parent / "step-00000004"))
    code, out, _ = command("diff", run, copy)
    assert (code, out) == (0, f"{checkpoint_of(run, 4)} and {copy} are equal\n")


def test_diff_shows_config_versions_state_and_data(command: Command, run: Path) -> None:
    def change(manifest: Any) -> None:
        manifest["config"]["optim"]["lr"] = 0.5
        manifest["environment"]["versions"]["torch"] = "9.9"
        manifest["state"]["train_seconds"] = 77.0
        manifest["dataset_digest"] = "other"

    change_manifest(checkpoint_of(run, 4), change)
    code, out, _ = command("diff", checkpoint_of(run, 2), checkpoint_of(run, 4))
    assert code == 1
    assert [line.split(": ")[:2] for line in out.splitlines()] == [
        ["config", "config.optim.lr"],
        ["versions", "environment.versions.torch"],
        ["state", "state.step"],
        ["data", "dataset_digest"],
    ]
    assert "config.optim.lr: 0.0003 | 0.5" in out
    assert command("diff", checkpoint_of(run, 2), checkpoint_of(run, 4), "--tensors")[0] == 0


def test_diff_compares_tensors_across_layouts(command: Command, tmp_path: Path) -> None:
    tensor = torch.arange(35.0).view(5, 7) + 1
    moved = tensor.clone()
    moved[2, 3] += 0.5
    same = {"same": tensor, "moved": tensor, "shaped": tensor, "typed": tensor, "gone": tensor}
    other = {"same": tensor, "moved": moved, "shaped": tensor.view(7, 5), "typed": tensor.bfloat16(), "new": tensor}
    one = write_checkpoint(tmp_path / "one", same, {"same": [3, 20], "moved": [9]})
    two = write_checkpoint(tmp_path / "two", other, {"same": [13], "moved": [18, 19]})
    code, out, _ = command("diff", one, two, "--json")
    facts = json.loads(out)
    assert code == 1 and facts["equal"] is False and not facts["config"]
    assert facts["tensors"] == {
        "moved": {
            "differing": 1,
            "max_abs": 0.5,
            "relative_l2": pytest.approx(0.5 / float(tensor.norm())),
        },
        "shaped": {"shape": [[5, 7], [7, 5]]},
        "typed": {"dtype": ["float32", "bfloat16"], "differing": 0, "max_abs": 0.0, "relative_l2": 0.0},
        "gone": {"only_in": "one"},
        "new": {"only_in": "other"},
    }
    code, out, _ = command("diff", one, two)
    assert "tensors: moved: 1 elements differ, at most by 0.5; relative L2" in out
    assert "tensors: gone: only in the first" in out and "tensors: shaped: shape (5, 7) | (7, 5)" in out.replace(
        "[", "("
    ).replace("]", ")")
    assert command("diff", one, two, "--match", "same")[:2] == (0, f"{one} and {two} are equal\n")
