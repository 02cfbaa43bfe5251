"""The list of mutations fits the code: `python -m tests.mutations` itself takes minutes."""

import os
import re
import subprocess
import sys

import pytest

from tests.mutations import ROOT
from tests.support.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_one_place_and_names_existing_tests(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert mutation.applied_to(text) != text
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name.partition('[')[0]}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_the_tests_named_are_in_the_suite() -> None:
    named = {test for mutation in MUTATIONS for test in mutation.tests}
    files = sorted({test.partition("::")[0] for test in named})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    plain = {**os.environ, "PYTEST_ADDOPTS": ""}  # -v would print the tests as a tree
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not named - set(done.stdout.splitlines())


def test_mutations_have_different_names() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_a_text_that_is_gone_or_not_alone_is_refused() -> None:
    mutation = Mutation("one", "nothing", "file.py", "a", "b", ())
    assert mutation.applied_to("xax") == "xbx"
    for text in ("xx", "xaxa"):
        with pytest.raises(ValueError, match="not once"):
            mutation.applied_to(text)
