"""A Python in which every message of this program reads differently.

Importing this module makes each later import of our packages scramble its string constants: in every text with a
space, letters are replaced, by others in each module, so that no module can recognize the messages of another. The
patterns for the messages of Slurm, PyTorch and the kernel stay.
"""

import ast
import importlib.abc
import importlib.machinery
import random
import string
import sys
from collections.abc import Sequence
from types import ModuleType

PACKAGES = ("launch", "pretrain", "data_pipeline")
KEPT = ("launch.slurm.slurm_messages", "pretrain.slurm_client")
"""The modules that know Slurm's messages."""


class Scramble(ast.NodeTransformer):
    """Rewords messages; arguments of re.compile are patterns for the messages of other programs."""

    def __init__(self, module: str) -> None:
        letters = list(string.ascii_letters)
        random.Random(module).shuffle(letters)
        self._table = str.maketrans(string.ascii_letters, "".join(letters))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "compile":
            return node
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and " " in node.value and "\n\n" not in node.value:
            return ast.copy_location(ast.Constant(node.value.translate(self._table)), node)
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        return ast.copy_location(ast.FormattedValue(self.visit(node.value), node.conversion, node.format_spec), node)


class Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data, path, *, _optimize=-1):  # type: ignore[no-untyped-def, override]
        tree = ast.fix_missing_locations(Scramble(self.name).visit(ast.parse(data)))
        return compile(tree, path, "exec", dont_inherit=True)

    def get_code(self, fullname: str):  # type: ignore[no-untyped-def]
        return self.source_to_code(self.get_data(self.path), self.path)  # never from a cache


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES or fullname in KEPT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path)
        return spec


sys.meta_path.insert(0, Finder())
