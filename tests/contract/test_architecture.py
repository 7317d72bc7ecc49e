"""The rules of the architecture, held by walking the syntax tree of every module.

Each rule is also shown a file that breaks it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    *(
        p
        for folder in ("ddengine", "buffers", "synth")
        for p in sorted((ROOT / folder).rglob("*.py"))
    ),
    ROOT / "run.py",
]
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
PACKAGES = {"ddengine", "buffers", "synth", "run", "tests", "benchmarks"}
# what recipes may name of buffers
STEP_CONFIGS = {"buffers.steps", "buffers.flat_step", "buffers.smooth", "buffers.pretrained"}
# of torch
RANDOM = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
# of torch, without a generator
RANDOM_LIKE = {"rand_like", "randn_like", "randint_like", "dropout"}
RANDOM_METHODS = {
    "bernoulli", "multinomial", "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "log_normal_", "cauchy_", "geometric_"
}  # fmt: skip


@cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """All nodes of a tree, walked once for all rules."""
    return tuple(ast.walk(tree))


@cache
def parsed(path: str) -> ast.AST:
    """The tree of a module, parsed once for all rules."""
    return ast.parse(SOURCES[path])


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute, `?.c` for an attribute of any other expression, "" for
    anything else.
    """
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value) or '?'}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def imported(tree: ast.AST, path: str) -> Iterator[tuple[str, str, int]]:
    """(full name, name it goes by, line) of everything imported; `from a import b` gives a.b, and
    relative imports are resolved.
    """
    package = path.split("/")[:-1]
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (
                (f"{module}.{alias.name}", alias.asname or alias.name, node.lineno)
                for alias in node.names
            )


def used(tree: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
    """(full name, node) of every name and attribute in the code, imports written out: after `import
    a.b as c`, c.d is a.b.d.
    """
    full = {alias: name for name, alias, _ in imported(tree, path) if alias}
    for node in nodes(tree):
        if name := dotted(node):
            first, dot, rest = name.partition(".")
            yield full.get(first, first) + dot + rest, node


def names(tree: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    """(full name, line) of everything imported or used."""
    yield from ((name, line) for name, _, line in imported(tree, path))
    yield from ((name, node.lineno) for name, node in used(tree, path))  # type: ignore[attr-defined]


def calls(tree: ast.AST, path: str) -> Iterator[tuple[str, ast.Call]]:
    """(full name of what is called, the call)."""
    called = {id(node.func): node for node in nodes(tree) if isinstance(node, ast.Call)}
    yield from ((name, called[id(node)]) for name, node in used(tree, path) if id(node) in called)


def below(name: str, module: str) -> bool:
    """Whether a dotted name is the module or lies in it."""
    return name == module or name.startswith(f"{module}.")


# Rules: (path, tree) -> what is wrong, with lines.


def dependency_direction(path: str, tree: ast.AST) -> Iterator[str]:
    """The core stands alone, buffers and synth stand on it; recipes may name the step
    configurations of buffers.
    """
    package = path.split("/")[0].removesuffix(".py")
    on_top = package == "run" or path.startswith(("ddengine/commands/", "ddengine/contract/"))
    allowed = {"ddengine", "buffers", "synth"} if on_top else {"ddengine", package}
    for name, _, line in imported(tree, path):
        ours = name.split(".")[0]
        if ours not in PACKAGES or ours in allowed:
            continue
        if path.startswith("synth/recipes/") and any(
            below(name, module) for module in STEP_CONFIGS
        ):
            continue
        yield f"{line}: {package} imports {name}"


def distributed_in_one_place(path: str, tree: ast.AST) -> Iterator[str]:
    """torch.distributed only in ddengine/system/dist.py."""
    if path != "ddengine/system/dist.py":
        yield from (
            f"{line}: {name}"
            for name, line in names(tree, path)
            if below(name, "torch.distributed")
        )


def print_in_two_places(path: str, tree: ast.AST) -> Iterator[str]:
    """print only in ddengine/commands/__init__.py and ddengine/system/log.py."""
    if path not in ("ddengine/commands/__init__.py", "ddengine/system/log.py"):
        yield from (f"{line}: {name}" for name, line in names(tree, path) if name == "print")


def no_pickle(path: str, tree: ast.AST) -> Iterator[str]:
    """Nothing that unpickles: files of users must not run code.

    Only an importer in buffers may, with weights_only=True.
    """
    for name, line in names(tree, path):
        if name in ("torch.load", "numpy.load") or any(
            below(name, m) for m in ("pickle", "cloudpickle", "joblib", "dill")
        ):
            if path.startswith("buffers/") and name == "torch.load":
                continue
            yield f"{line}: {name}"
    for name, call in calls(tree, path):
        if name == "torch.load" and not any(
            k.arg == "weights_only" and getattr(k.value, "value", None) is True
            for k in call.keywords
        ):
            yield f"{call.lineno}: torch.load without weights_only=True"


def torchvision_through_compat(path: str, tree: ast.AST) -> Iterator[str]:
    """torchvision is imported by ddengine.system.compat alone."""
    if path != "ddengine/system/compat.py":
        yield from (
            f"{line}: {name}"
            for name, _, line in imported(tree, path)
            if below(name, "torchvision")
        )


def no_global_generators(path: str, tree: ast.AST) -> Iterator[str]:
    """Every random number comes from a generator that was handed in; only ddengine/system/rng.py
    seeds the global ones.
    """
    for name, call in calls(tree, path):
        last = name.split(".")[-1]
        given = any(k.arg == "generator" for k in call.keywords)
        if name in (
            "torch.manual_seed",
            "torch.seed",
            "torch.random.manual_seed",
            "torch.cuda.manual_seed",
            "torch.cuda.manual_seed_all",
        ):
            if path != "ddengine/system/rng.py":
                yield f"{call.lineno}: {name}"
        elif (
            name.startswith("torch.")
            and name.count(".") == 1
            and (last in RANDOM_LIKE or (last in RANDOM and not given))
        ):
            yield f"{call.lineno}: {name} without a generator"
        elif last in RANDOM_METHODS and not given:
            yield f"{call.lineno}: {name} without a generator"
        elif name.startswith("numpy.random.") and (
            last not in ("default_rng", "Generator") or not call.args
        ):
            yield f"{call.lineno}: {name}"
    yield from (
        f"{line}: the module {name}"
        for name, _, line in imported(tree, path)
        if below(name, "random")
    )


def docstrings(path: str, tree: ast.AST) -> Iterator[str]:
    """Every module, public function, public class and public method of one says what it is."""
    assert isinstance(tree, ast.Module)
    if not ast.get_docstring(tree):
        yield "1: the module has no docstring"

    def walk(body: list[ast.stmt], owner: str) -> Iterator[str]:
        for node in body:
            if isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield f"{node.lineno}: {owner}{node.name} has no docstring"
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{node.name}.")

    yield from walk(tree.body, "")


RULES = (
    dependency_direction, distributed_in_one_place, print_in_two_places, no_pickle, torchvision_through_compat, no_global_generators, docstrings
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    wrong = [f"{path}:{complaint}" for path in SOURCES for complaint in rule(path, parsed(path))]
    assert not wrong, "\n".join(wrong)


def test_the_rules_look_at_the_whole_program():
    assert len(SOURCES) > 35
    for path in (
        "run.py",
        "ddengine/system/dist.py",
        "ddengine/data/load.py",
        "buffers/store.py",
        "synth/recipes/mtt.py",
    ):
        assert path in SOURCES


BROKEN = [
    (dependency_direction, "ddengine/new.py", "from synth import trajectory"),
    (dependency_direction, "ddengine/new.py", "def f():\n    import buffers.store"),
    (dependency_direction, "ddengine/new.py", "import run"),
    (dependency_direction, "ddengine/new.py", "from tests.unit import test_data"),
    (dependency_direction, "buffers/new.py", "from synth.recipes import find"),
    (dependency_direction, "synth/new.py", "from buffers.steps import Sgd"),
    (dependency_direction, "synth/recipes/new.py", "from buffers.store import ExpertStore"),
    (dependency_direction, "synth/recipes/new.py", "from buffers import store"),
    (dependency_direction, "synth/recipes/new.py", "import run"),
    (distributed_in_one_place, "ddengine/new.py", "import torch\nn = torch.distributed.get_rank()"),
    (distributed_in_one_place, "run.py", "from torch import distributed"),
    (distributed_in_one_place, "buffers/new.py", "import torch.distributed as td"),
    (print_in_two_places, "synth/new.py", "print(1)"),
    (no_pickle, "ddengine/new.py", "import torch\ntorch.load('a', weights_only=True)"),
    (no_pickle, "synth/new.py", "from torch import load"),
    (no_pickle, "buffers/new.py", "import torch\ntorch.load('a')"),
    (no_pickle, "run.py", "import pickle"),
    (torchvision_through_compat, "ddengine/new.py", "def f():\n    import torchvision.datasets"),
    (torchvision_through_compat, "run.py", "from torchvision import utils"),
    (no_global_generators, "ddengine/new.py", "import torch\ntorch.manual_seed(0)"),
    (no_global_generators, "synth/new.py", "import torch\ntorch.randn(3)"),
    (no_global_generators, "synth/new.py", "from torch import randperm\nrandperm(3)"),
    (no_global_generators, "buffers/new.py", "import torch\ntorch.randn_like(x)"),
    (no_global_generators, "buffers/new.py", "x.normal_()"),
    (no_global_generators, "buffers/new.py", "import torch\ntorch.empty(3).uniform_(0, 1)"),
    (no_global_generators, "buffers/new.py", "p.softmax(0).multinomial(1)"),
    (no_global_generators, "ddengine/new.py", "import numpy as np\nnp.random.permutation(3)"),
    (no_global_generators, "ddengine/new.py", "import numpy as np\nnp.random.default_rng()"),
    (no_global_generators, "run.py", "import random"),
    (docstrings, "ddengine/new.py", '"""A."""\ndef f():\n    pass'),
    (
        docstrings,
        "ddengine/new.py",
        '"""A."""\nclass A:\n    """A."""\n    def f(self):\n        pass',
    ),
    (docstrings, "ddengine/new.py", "a = 1"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_a_rule_bites(rule, path, source):
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ddengine/new.py", '"""A."""\nimport torch\nx = torch.rand(3, generator=g)'),
        (
            "ddengine/new.py",
            '"""A."""\nfrom ddengine.system.compat import torchvision\ntorchvision.utils.save_image(x)',
        ),
        (
            "synth/recipes/new.py",
            '"""A."""\nfrom buffers.steps import Sgd\nfrom ddengine.recipe import Recipe\nfrom synth import trajectory',
        ),
        (
            "buffers/new.py",
            '"""A."""\nimport numpy as np\nimport torch\nnp.random.default_rng(3).permutation(4)\ntorch.load("a", weights_only=True)',
        ),
        (
            "ddengine/new.py",
            '"""A."""\n\ndef _f():\n    def g():\n        pass\n\nx.uniform_(generator=g)\n"print(1)"',
        ),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert not [complaint for rule in RULES for complaint in rule(path, ast.parse(source))]
