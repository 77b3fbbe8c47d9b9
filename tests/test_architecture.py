"""The halves of the package: a core without I/O, and shells around it."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ventu_lite

PACKAGE = Path(ventu_lite.__file__).parent

# A module of the core imports only modules above it; every other module is a shell.
CORE = [
    "errors",
    "events",
    "frames",
    "maps",
    "states",
    "messages",
    "protocol",
    "addresses",
    "secret_files",
    "retries",
    "slowness",
    "config",
    "codecs",
    "media_types",
    "headers",
    "problems",
    "outcomes",
    "serializing",
    "impatience",
    "substitutes",
    "validation",
    "misfits",
    "functions",
    "annotations",
    "stages",
    "hints",
    "handovers",
    "declarations",
    "isolation",
    "pipeline",
    "schema_examples",
    "changes",
    "sending",
    "examples",
    "composition",
    "schemas",
    "components",
    "openapi",
    "buckets",
    "room",
    "metrics",
    "forwarding",
    "service",
    "batching.jobs",
    "batching.policy",
    "batching.lanes",
    "batching.learning",
    "batching.adaptive",
    "batching.choose",
    "batching.workers",
    "batching.queue",
    "batching.tally",
    "http.head",
    "http.request",
    "batching.terms",
    "batching.refusals",
]
BANNED = {
    "asyncio",
    "click",
    "flask",
    "logging",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
# The registry hands out its shells, which it imports when it is asked for one.
EXCEPTIONS = {"service": {"blueprint", "forks", "runtime", "worker_process"}}


def modules() -> list[str]:
    """Return the modules of the package, as ``pipeline`` or ``batching.queue``."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [".".join(path.parts).removesuffix("__init__").rstrip(".") for path in paths]
    return sorted(name for name in names if name)


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def nodes_of(node: ast.AST, *, with_functions: bool) -> Iterator[ast.AST]:
    """Yield the nodes below, without those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not with_functions:
            continue
        yield child
        yield from nodes_of(child, with_functions=with_functions)


def imports_of(module: str, *, with_functions: bool = True) -> tuple[set[str], set[str]]:
    """Return the top packages that a module imports, and the modules of ours."""
    foreign: set[str] = set()
    own: set[str] = set()
    path = path_of(module)
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for node in nodes_of(ast.parse(path.read_text()), with_functions=with_functions):
        if isinstance(node, ast.Import):
            foreign |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            foreign.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = parts[: -node.level]
            named = [".".join([*base, node.module])] if node.module else []
            own |= set(named or (".".join([*base, alias.name]) for alias in node.names))
    assert PACKAGE.name not in foreign, f"{module}: say it relatively, as all others do"
    return foreign, own & set(modules())


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_io(module: str) -> None:
    """It must be testable without a socket, a clock, a thread or Flask."""
    assert imports_of(module)[0].isdisjoint(BANNED)


@pytest.mark.parametrize("module", CORE)
def test_a_core_module_imports_only_those_above_it(module: str) -> None:
    above = set(CORE[: CORE.index(module)])
    assert imports_of(module)[1] - above - EXCEPTIONS.get(module, set()) == set()


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_a_shell_is_imported_by_the_core_only_when_asked_for(module: str) -> None:
    assert imports_of(module, with_functions=False)[1].isdisjoint(EXCEPTIONS[module])


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_every_exception_is_needed(module: str) -> None:
    assert EXCEPTIONS[module] <= imports_of(module)[1]


@pytest.mark.parametrize(
    ("package", "others"),
    [("http", {"batching", "serving"}), ("batching", {"serving"})],
)
def test_a_package_knows_nothing_of_those_around_it(package: str, others: set[str]) -> None:
    for module in modules():
        if module.partition(".")[0] == package:
            assert {name.partition(".")[0] for name in imports_of(module)[1]}.isdisjoint(others)


def test_no_modules_import_each_other() -> None:
    graph = {module: imports_of(module, with_functions=False)[1] for module in modules()}
    assert circle_in(graph) == []


def circle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def test_the_public_names_are_sorted_and_complete() -> None:
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert ventu_lite.__all__ == sorted(imported)
    assert all(hasattr(ventu_lite, name) for name in ventu_lite.__all__)
    assert set(ventu_lite.__all__) <= set(dir(ventu_lite))


def test_a_name_that_is_not_public_is_missing() -> None:
    with pytest.raises(AttributeError, match="module 'ventu_lite' has no attribute 'Servise'"):
        ventu_lite.Servise  # noqa: B018  # looking is the test


def test_every_exception_is_public() -> None:
    tree = ast.parse(path_of("errors").read_text())
    named = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert named <= set(ventu_lite.__all__)


HEAVY = [
    "flask",
    "flasgger",
    "msgpack",
    "openapi_ui_bundles",
    "prometheus_client",
    "prometheus_flask_exporter",
    "werkzeug",
]


def test_registering_a_model_is_cheap() -> None:
    """A worker, a test and a notebook do not pay for what they do not use."""
    use = "ventu_lite.Service().infer(lambda item: item)"
    code = f"import sys, ventu_lite; {use}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
