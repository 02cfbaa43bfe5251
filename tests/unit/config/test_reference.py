"""docs/configuration.md is generated from the records."""

import pytest

from pretrain.config.describe import keys_of
from pretrain.config.reference import PAGE, all_checks, page
from pretrain.config.run import RunConfig


def test_the_committed_page_is_up_to_date() -> None:
    if not PAGE.parent.is_dir():
        pytest.skip("docs/ is not part of an installed package")
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m pretrain.config.reference --write`"


def test_the_page_has_every_key() -> None:
    text = page()
    assert [key.name for key in keys_of(RunConfig) if f"`{key.name}" not in text] == []


def test_checks_name_rules_and_modules() -> None:
    checks = all_checks()
    assert "must be greater than 0" in checks["optim.lr"]
    assert "`pretrain/config/layout_checks.py`" in checks["parallel.pp_layout"]
    assert "`pretrain/config/engine_checks.py`" in checks["engine.offload.params"]
