"""Removes, one at a time, steps of the engine whose absence raises no error, and checks that a test fails.

    python -m tests.mutations [--list] [--only NAME ...]

Works on a copy of this tree in a temporary folder. Exits with 1 where a mutation survives: then a law is missing from
the tests. Each mutation comes with the quickest tests that must fail for it; first all of them must pass without any.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from tests.support.mutations import MUTATIONS, TEST_SECONDS, Mutation

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60
"""For imports and the reference of one process, beside the time of the tests."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    parser.add_argument("--only", nargs="+", choices=[m.name for m in MUTATIONS], metavar="NAME", help="try these")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.only is None or mutation.name in options.only]
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name:20} {mutation.file}: {mutation.breaks}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = copy_tree(Path(folder) / "tree")
        return try_all(chosen, tree)


def try_all(mutations: list[Mutation], tree: Path) -> int:
    """The exit code: 0 where every mutation is caught."""
    texts = {mutation.file: (tree / mutation.file).read_text() for mutation in mutations}
    mutated = {mutation.name: mutation.applied_to(texts[mutation.file]) for mutation in mutations}
    check_imports(tree)
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    started = time.monotonic()
    failed, output = run_tests(tests, tree, TEST_SECONDS)
    if failed is None or failed:
        stop(f"without any mutation these must pass:\n{output}")
    print(f"{len(tests)} tests pass without a mutation, {time.monotonic() - started:.0f} s", flush=True)
    survivors = []
    for mutation in mutations:
        path = tree / mutation.file
        path.write_text(mutated[mutation.name])
        started = time.monotonic()
        failed, output = run_tests(mutation.tests, tree, mutation.seconds)
        path.write_text(texts[mutation.file])
        if failed is None:
            stop(f"{mutation.name}: the tests could not run:\n{output}")
        caught = failed == len(mutation.tests)
        survivors += [] if caught else [mutation.name]
        verdict = "caught" if caught else f"SURVIVED ({failed} of {len(mutation.tests)} tests failed)"
        print(f"{mutation.name:20} {verdict:8} {time.monotonic() - started:4.0f} s  {mutation.breaks}", flush=True)
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} caught", *survivors)
    return 1 if survivors else 0


def copy_tree(folder: Path) -> Path:
    """Copy the files that git tracks, and those it would add, to `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # a deleted file is still listed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def check_imports(tree: Path) -> None:
    """The copy must be what is imported there, not a checkout that is installed to be edited."""
    modules = ("pretrain.engine.zero", "data_pipeline.stream.loader", "tests.support.ranks")
    program = f"import importlib.util as u; print(*[u.find_spec(name).origin for name in {modules}], sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment(tree), capture_output=True, check=True, text=True
    )
    for path in found.stdout.split():
        if not Path(path).resolve().is_relative_to(tree.resolve()):
            stop(f"{path} is imported instead of the copy in {tree}")


def run_tests(tests: Iterable[str], tree: Path, seconds: int) -> tuple[int | None, str]:
    """How many fail, None where pytest itself does, and what it prints."""
    tests = list(tests)
    options = ("-q", "-p", "no:cacheprovider", "--tb=line", f"--timeout={seconds}", f"--basetemp={tree.parent}/pytest")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=environment(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=START_SECONDS + seconds * len(tests))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return len(tests), output + "\n(killed: it hung past the limits of its tests)"
    if process.returncode not in (0, 1):
        return None, output
    # Not from the last line: a server of ranks may end after it, with a word about a session that hung.
    return len(re.findall(r"^(?:FAILED|ERROR) ", output, re.MULTILINE)), output


def environment(tree: Path) -> dict[str, str]:
    # Not from compiled files: two edits within a second that leave the size look like none.
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def stop(message: str) -> NoReturn:
    sys.exit(f"mutations: {message}")


if __name__ == "__main__":
    sys.exit(main())
