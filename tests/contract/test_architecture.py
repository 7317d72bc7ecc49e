"""The rules of the architecture, held by walking the syntax tree of every module.

Each rule is also shown a file that breaks it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
STEP_CONFIGS = {
    "buffers.steps",
    "buffers.flat_step",
    "buffers.smooth",
    "buffers.pretrained",
    "buffers.barlow",
    "buffers.mixed",
    "buffers.curriculum",
}
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

DOORS = ("ddengine/commands/", "ddengine/contract/")  # what of the core may know all packages
ALL = {"ddengine", "buffers", "synth"}


def dependency_direction(path: str, tree: ast.AST) -> Iterator[str]:
    """The core stands alone, buffers and synth stand on it, and only the doors know all of them.

    Recipes may name the training steps of buffers.
    """
    package = path.split("/")[0].removesuffix(".py")
    allowed = {"ddengine", package}
    if package == "run" or path.startswith(DOORS):
        allowed = ALL
    for name, _, line in imported(tree, path):
        package_of_name = name.split(".")[0]
        if package_of_name not in PACKAGES or package_of_name in allowed:
            continue
        if path.startswith("synth/recipes/") and any(below(name, m) for m in STEP_CONFIGS):
            continue
        yield f"{line}: {package} imports {name}"


# The floors of the core, from the ground up: a module imports what lies on its own floor or below.
FLOORS = (
    ("system",),
    ("recipe", "types", "changes", "naming", "common_facts", "contents", "contents_of_uses"),
    ("data", "models"),
    ("learning",),
    ("sets",),
    ("experts", "objective", "turns", "loop", "in_groups", "prepare"),
    ("evaluation",),
    ("artefact",),
    ("pages", "uses", "plan"),
    ("api",),
    ("__init__",),
    ("commands", "contract", "__main__"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a module of the core, by its dotted name; that of the package is __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(path: str) -> str:
    """The dotted name of a file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def floors(path: str, tree: ast.AST) -> Iterator[str]:
    """No room of the core imports one that stands above it, not even for a type."""
    if not path.startswith("ddengine/"):
        return
    room = room_of(module_of(path))
    if room not in FLOOR_OF:
        yield f"1: the room {room} stands on no floor; give it one in FLOORS"
        return
    for name, _, line in imported(tree, path):
        if not below(name, "ddengine"):
            continue
        other = room_of(name)
        if other not in FLOOR_OF:  # a public name of the package itself
            other = "__init__"
        if FLOOR_OF[other] > FLOOR_OF[room]:
            yield f"{line}: {room} imports {name}, which stands above it"


PROBES = "# probe:"  # beside a look for an attribute by its name goes the reason


def abilities_are_declared(path: str, tree: ast.AST) -> Iterator[str]:
    """No part is asked by name whether it has an ability: Protocols and base classes say them, with
    defaults.

    Objects of other libraries, and of users, may be asked, with the reason beside it. A Protocol
    that isinstance takes would ask for names, too, whatever they mean.
    """
    for name, line in names(tree, path):
        if name == "typing.runtime_checkable":
            yield f"{line}: a Protocol for isinstance; make it a base class"
    lines = SOURCES.get(path, "").split("\n")
    for name, call in calls(tree, path):
        asked = name == "hasattr" or (name == "getattr" and len(call.args) == 3)
        if not asked:
            continue
        beside = "\n".join(lines[max(0, call.lineno - 2) : call.end_lineno])
        if PROBES not in beside:
            yield f"{call.lineno}: {name}(...) without a reason ({PROBES} ...)"


CODECS = {
    "Identity", "Pixels", "MultiFormation", "Compensated", "LinearBases", "Quantised", "Reduced", "Gaussians", "Siren",
    "Spectra", "SparseTokens", "Hallucinated", "Mixed",
}  # fmt: skip


def codecs_say_what_they_are(path: str, tree: ast.AST) -> Iterator[str]:
    """The core asks a codec, and not whether it is one that it knows: others may say the same."""
    if not path.startswith("ddengine/") or path.startswith("ddengine/sets/codec/"):
        return
    for name, call in calls(tree, path):
        if name != "isinstance" or len(call.args) < 2:
            continue
        known = {dotted(part).rpartition(".")[2] for part in ast.walk(call.args[1])} & CODECS
        if known:
            yield f"{call.lineno}: asks whether a codec is {', '.join(sorted(known))}"


LONGEST = 60  # lines of a function; more with the reason beside it
LONG = "# long:"


def short_functions(path: str, tree: ast.AST) -> Iterator[str]:
    """A function fits on a screen, or says why it does not; none has more than 90 lines."""
    lines = SOURCES.get(path, "").split("\n")
    for node in nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        said = any(LONG in line for line in lines[max(0, node.lineno - 2) : node.body[0].lineno])
        if length > 90 or (length > LONGEST and not said):
            yield f"{node.lineno}: {node.name} has {length} lines"


MOST_PATHS = 10  # through a function; more, up to what ruff allows, with the reason beside it
COMPLEX = "# complex:"
BRANCHES = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.FunctionDef, ast.AsyncFunctionDef
)  # fmt: skip


def simple_functions(path: str, tree: ast.AST) -> Iterator[str]:
    """A function has few paths through it, or says why not; ruff (C901) refuses more than 12."""
    lines = SOURCES.get(path, "").split("\n")
    for node in nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        paths = sum(isinstance(part, BRANCHES) for part in ast.walk(node))  # itself is one
        said = any(COMPLEX in line for line in lines[max(0, node.lineno - 2) : node.body[0].lineno])
        if paths > MOST_PATHS and not said:
            yield f"{node.lineno}: {node.name} has a complexity of {paths}"


def narrow_lines(path: str, tree: ast.AST) -> Iterator[str]:
    """No line has more than 110 columns; ruff asks for 100."""
    for number, line in enumerate(SOURCES.get(path, "").split("\n"), 1):
        if len(line) > 110:
            yield f"{number}: {len(line)} columns"


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

    Only importers in buffers, and of weights for generators, may, with weights_only=True.
    """
    for name, line in names(tree, path):
        if name in ("torch.load", "numpy.load") or any(
            below(name, m) for m in ("pickle", "cloudpickle", "joblib", "dill")
        ):
            if path.startswith(("buffers/", "synth/generative/")) and name == "torch.load":
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
    dependency_direction,
    floors,
    distributed_in_one_place,
    print_in_two_places,
    no_pickle,
    torchvision_through_compat,
    no_global_generators,
    docstrings,
    abilities_are_declared,
    codecs_say_what_they_are,
    short_functions,
    simple_functions,
    narrow_lines,
)


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


def modules_imported(path: str) -> set[str]:
    """The modules of this program that a file imports, anywhere in it, by dotted name."""
    known = {module_of(other) for other in SOURCES}
    modules = set()
    for name, _, _ in imported(parsed(path), path):
        # `from a.b import c` imports a.b.c where that is a module, and else a.b
        modules.add(name if name in known else name.rpartition(".")[0])
    return (modules & known) - {module_of(path)}


def test_no_module_imports_itself_through_others():
    graph = {module_of(path): modules_imported(path) for path in SOURCES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


BROKEN = [
    (floors, "ddengine/system/new.py", "from ddengine.recipe import Recipe"),
    (floors, "ddengine/sets/new.py", "def f():\n    from ddengine.pages import figures"),
    (floors, "ddengine/learning/new.py", "if TYPE_CHECKING:\n    from ddengine.sets import start"),
    (floors, "ddengine/plan/new.py", "from ddengine import distill"),
    (floors, "ddengine/attic/new.py", "import torch"),
    (abilities_are_declared, "synth/new.py", "hasattr(objective, 'window')"),
    (abilities_are_declared, "ddengine/sets/new.py", "getattr(objective, 'batch', None)"),
    (abilities_are_declared, "ddengine/api/new.py", "from typing import runtime_checkable"),
    (
        codecs_say_what_they_are,
        "ddengine/uses/new.py",
        "isinstance(codec, Identity | codecs.Pixels)",
    ),
    (short_functions, "buffers/new.py", "def f():\n" + "    f()\n" * 61),
    (short_functions, "buffers/new.py", "def f():  # long: a table\n" + "    f()\n" * 91),
    (simple_functions, "buffers/new.py", "def f(a):\n" + "    if a: return\n" * 10),
    (simple_functions, "synth/new.py", "async def f(a):\n" + "    for b in a: g(b)\n" * 10),
    (narrow_lines, "run.py", "a = " + "1" * 110),
    (dependency_direction, "ddengine/api/new.py", "import synth"),
    (dependency_direction, "ddengine/sets/new.py", "from synth import trajectory"),
    (dependency_direction, "ddengine/sets/new.py", "def f():\n    import buffers.store"),
    (dependency_direction, "ddengine/sets/new.py", "import run"),
    (dependency_direction, "ddengine/sets/new.py", "from tests.unit import test_data"),
    (dependency_direction, "buffers/new.py", "from synth.recipes import find"),
    (dependency_direction, "synth/new.py", "from buffers.steps import Sgd"),
    (dependency_direction, "synth/recipes/new.py", "from buffers.store import ExpertStore"),
    (dependency_direction, "synth/recipes/new.py", "from buffers import store"),
    (dependency_direction, "synth/recipes/new.py", "import run"),
    (
        distributed_in_one_place,
        "ddengine/sets/new.py",
        "import torch\nn = torch.distributed.get_rank()",
    ),
    (distributed_in_one_place, "run.py", "from torch import distributed"),
    (distributed_in_one_place, "buffers/new.py", "import torch.distributed as td"),
    (print_in_two_places, "synth/new.py", "print(1)"),
    (no_pickle, "ddengine/sets/new.py", "import torch\ntorch.load('a', weights_only=True)"),
    (no_pickle, "synth/new.py", "from torch import load"),
    (no_pickle, "buffers/new.py", "import torch\ntorch.load('a')"),
    (no_pickle, "run.py", "import pickle"),
    (
        torchvision_through_compat,
        "ddengine/sets/new.py",
        "def f():\n    import torchvision.datasets",
    ),
    (torchvision_through_compat, "run.py", "from torchvision import utils"),
    (no_global_generators, "ddengine/sets/new.py", "import torch\ntorch.manual_seed(0)"),
    (no_global_generators, "synth/new.py", "import torch\ntorch.randn(3)"),
    (no_global_generators, "synth/new.py", "from torch import randperm\nrandperm(3)"),
    (no_global_generators, "buffers/new.py", "import torch\ntorch.randn_like(x)"),
    (no_global_generators, "buffers/new.py", "x.normal_()"),
    (no_global_generators, "buffers/new.py", "import torch\ntorch.empty(3).uniform_(0, 1)"),
    (no_global_generators, "buffers/new.py", "p.softmax(0).multinomial(1)"),
    (no_global_generators, "ddengine/sets/new.py", "import numpy as np\nnp.random.permutation(3)"),
    (no_global_generators, "ddengine/sets/new.py", "import numpy as np\nnp.random.default_rng()"),
    (no_global_generators, "run.py", "import random"),
    (docstrings, "ddengine/sets/new.py", '"""A."""\ndef f():\n    pass'),
    (
        docstrings,
        "ddengine/sets/new.py",
        '"""A."""\nclass A:\n    """A."""\n    def f(self):\n        pass',
    ),
    (docstrings, "ddengine/sets/new.py", "a = 1"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_a_rule_bites(rule, path, source, monkeypatch):
    monkeypatch.setitem(SOURCES, path, source)
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ddengine/sets/new.py", '"""A."""\nimport torch\nx = torch.rand(3, generator=g)'),
        (
            "ddengine/sets/new.py",
            '"""A."""\nfrom ddengine.system.compat import torchvision\ntorchvision.utils.save_image(x)',
        ),
        ("ddengine/commands/new.py", '"""A."""\nimport synth\nfrom ddengine.api import distill'),
        ("ddengine/pages/new.py", '"""A."""\nfrom ddengine.evaluation import rates'),
        ("ddengine/data/new.py", '"""A."""\nx = getattr(y, "z", 1)  # probe: of users'),
        (
            "synth/recipes/new.py",
            '"""A."""\nfrom buffers.steps import Sgd\nfrom ddengine.recipe import Recipe\nfrom synth import trajectory',
        ),
        (
            "buffers/new.py",
            '"""A."""\nimport numpy as np\nimport torch\nnp.random.default_rng(3).permutation(4)\ntorch.load("a", weights_only=True)',
        ),
        (
            "ddengine/sets/new.py",
            '"""A."""\n\ndef _f():\n    def g():\n        pass\n\nx.uniform_(generator=g)\n"print(1)"',
        ),
    ],
)
def test_what_is_allowed_passes(path, source, monkeypatch):
    monkeypatch.setitem(SOURCES, path, source)
    assert not [complaint for rule in RULES for complaint in rule(path, ast.parse(source))]
