"""The shape of the source: which module may import which, and what start-up must not load."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vtrain.cli

PACKAGE = Path(vtrain.cli.__file__).parent
# From what runs to what everything rests on: a module imports from its own folder, or from rows
# further down. Folders of one row do not know each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("pages",),
    ("results",),
    ("runs",),
    ("training", "inference"),
    ("data", "models"),
    ("config",),
    ("system",),
    ("errors",),
)
HEAVY = ("torch", "torchvision", "numpy", "PIL", "safetensors")
PRINTERS = ("cli", "system.terminal")
LONG_BODIES = 40, 60  # lines of a function; the driver and the epoch of a run may have more
DRIVERS = ("runs.fit", "runs.epochs")


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of each module by its name below the package: `data.images`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def module_names() -> list[str]:
    return [name for name in trees() if not name.endswith("__init__")]


def imported_names(node: ast.AST) -> list[str]:
    """Absolute names of modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the direction"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def internal_imports(module: str) -> set[str]:
    """Modules of the package that a module imports, inside functions as well."""
    return {other for node in ast.walk(trees()[module]) for other in internal_imports_of(node)}


def internal_imports_of(node: ast.AST) -> set[str]:
    """Modules of the package that a statement imports."""
    found = set()
    for name in imported_names(node):
        parts = name.split(".")
        if parts[0] != "vtrain":
            continue
        for length in range(len(parts), 1, -1):
            candidate = ".".join(parts[1:length])
            if candidate in trees():
                found.add(candidate)
                break
    return found


def folder_of(module: str) -> str:
    """`data` for `data.images`; a module that lies in no folder is its own."""
    return module.partition(".")[0]


def find_layer(module: str) -> int:
    """The row of a module's folder, 0 the highest."""
    rows = [number for number, row in enumerate(LAYERS) if folder_of(module) in row]
    assert rows, f"vtrain/{module.replace('.', '/')}.py lies in no folder of LAYERS"
    return rows[0]


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        yield from imported_names(node)


# --- imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", module_names())
def test_imports_point_down(module: str) -> None:
    for other in internal_imports(module):
        own_folder = folder_of(module) == folder_of(other)
        assert own_folder or find_layer(other) > find_layer(module), (
            f"{module} imports {other}, which stands beside or above it"
        )


def test_no_import_cycles() -> None:
    graph = {module: internal_imports(module) for module in module_names()}
    done: set[str] = set()
    while len(done) < len(graph):
        free = {module for module, needs in graph.items() if needs <= done} - done
        assert free, f"a cycle among {sorted(set(graph) - done)}"
        done |= free


def test_layers_are_the_folders_that_exist() -> None:
    assert {folder_of(module) for module in module_names()} == {
        name for row in LAYERS for name in row
    }
    assert sum(len(internal_imports(module)) for module in module_names()) > 100


def test_init_files_are_empty() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert path.read_bytes() == b"", path


def find_start_up() -> set[str]:
    """Modules that are loaded for every command: what `__main__` imports, and what that imports."""
    found, new = set(), {"__main__", "cli"}
    while new:
        found |= new
        new = {
            other
            for module in new
            for node in trees()[module].body
            for other in internal_imports_of(node)
        } - found
    return found


def test_start_up_imports_nothing_heavy() -> None:
    """Help and mistakes in a config come at once; what computes is imported inside functions."""
    start_up = find_start_up()
    assert len(start_up) > 20
    for module in start_up:
        for name in top_level_imports(trees()[module]):
            assert name.partition(".")[0] not in HEAVY, f"{module} imports {name}"


@pytest.mark.parametrize("module", module_names())
def test_manners(module: str) -> None:
    tree = trees()[module]
    assert ast.get_docstring(tree), "each module says in one line what it is for"
    for node in ast.walk(tree):
        for name in imported_names(node):
            assert not name.startswith("os.path"), name
            assert not name.endswith(".*"), name
        if isinstance(node, ast.Attribute):
            used = ast.unparse(node)
            # What pathlib has not, or not before Python 3.12.
            known = ("os.path.lexists", "os.path.abspath", "os.path.relpath", "os.path.realpath")
            assert not used.startswith("os.path.") or used in known, used
            assert used != "sys.stdout" or module in PRINTERS, f"line {node.lineno}: {used}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"line {node.lineno}"
        if isinstance(node, ast.Global):
            raise AssertionError(f"line {node.lineno}: a global")


@pytest.mark.parametrize("module", module_names())
def test_function_bodies_are_short(module: str) -> None:
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            limit = LONG_BODIES[module in DRIVERS]
            assert length <= limit, f"{node.name} has {length} lines"


# --- start-up ------------------------------------------------------------------------------------

COUNT = """
import json, sys
from vtrain.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    loaded = [name for name in {heavy!r} if name in sys.modules]
    results.append([arguments, code, loaded])
print("RESULTS" + json.dumps(results))
"""
COMMANDS = (
    "fit", "evaluate", "predict", "embed", "backbones", "init", "config", "schema", "sample", "env",
    "check", "compare", "explain", "neighbors", "probe", "report", "runs", "suspects",
)  # fmt: skip


def run_light(commands: list[list[str]], folder: Path) -> list[tuple[list[str], int, list[str]]]:
    """Run commands one after the other in one process: (arguments, code, heavy modules loaded)."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(heavy=HEAVY), json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
        timeout=60,
        check=True,
    )
    return [tuple(row) for row in json.loads(done.stdout.rpartition("RESULTS")[2])]


def test_help_and_config_commands_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    good = "model: {backbone: resnet18}\ndata: {train: images, val_fraction: 0.2}\n"
    (tmp_path / "good.yaml").write_text(good)
    (tmp_path / "wrong.yaml").write_text(good.replace("resnet18", "resnet5") + "lr: fast\n")
    (tmp_path / "broken.yaml").write_text("model: [")
    fine = [
        ["--help"],
        ["--version"],
        *([name, "-h"] for name in COMMANDS),
        ["config", "good.yaml", "train.epochs=3"],
        ["config", "good.yaml", "--json"],
        ["schema"],
        ["runs"],
        ["backbones"],
        ["backbones", "--json"],
    ]
    refused = [
        [],
        ["pedict"],
        ["fit"],
        ["fit", "--resme"],
        ["fit", "nix.yaml"],
        ["fit", "wrong.yaml"],
        ["fit", "broken.yaml"],
        ["fit", "good.yaml", "train.epochs=0"],
        ["config", "wrong.yaml"],
        ["backbones", "resnet5"],
        ["init", "nix"],
        ["predict", "x", "--json", "--top-k", "0"],
    ]
    for arguments, code, loaded in run_light(fine + refused, tmp_path):
        assert loaded == [], arguments
        assert (code == 0) == (arguments in fine), (arguments, code)
