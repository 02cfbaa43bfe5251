"""The table of vendor patches matches the code: each row names a function of ours and a test that needs it."""

import re
from pathlib import Path

import pytest

from pretrain.engine import vendor_patches
from pretrain.engine.vendor_patches import PATCHES, VendorPatch

ROOT = Path(__file__).resolve().parents[3]


def defines(place: str) -> bool:
    """Whether a file defines the function or class of `file::name`."""
    file, _, name = place.partition("::")
    return re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.changes)
def test_a_patch_names_our_code_and_an_existing_test(patch: VendorPatch) -> None:
    assert defines(patch.where)
    assert defines(patch.test)
    assert re.fullmatch(r"[\w-]+ \d+(\.\d+)+", patch.version)


def test_every_function_of_the_file_is_in_the_table() -> None:
    file = "pretrain/engine/vendor_patches.py"
    found = re.findall(r"^(?:def|class) (\w+)", (ROOT / file).read_text(), re.MULTILINE)
    listed = {patch.where.partition("::")[2] for patch in PATCHES if patch.where.startswith(file)}
    assert set(found) - {VendorPatch.__name__} == listed


def test_the_engine_branches_on_the_zero_stage_in_one_file() -> None:
    folder = Path(vendor_patches.__file__).parent
    branch = re.compile(r"\b(?:if|match|elif)\b[^#\n]*zero_stage|zero_stage\s*(?:[<>]|==|!=|in\b)")
    found = {path.name for path in folder.rglob("*.py") if branch.search(path.read_text())}
    assert found == {"families.py"}
