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
# From what runs to what everything rests on: a module imports from rows further down only. A name
# that ends with a dot stands for a folder, whose modules may also import one another.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands.",),
    ("usage",),  # explains the errors of all below
    ("check_page",),
    ("check",),
    ("check_findings",),
    ("probe_page",),
    ("probe_report",),
    ("fit", "init", "predict_file", "explain_files", "dry_run_view"),
    ("fit_run", "dry_run"),
    ("final_evaluation",),
    ("phase", "profile", "loop_builder"),
    ("probe",),
    ("compare_page", "suspects_page", "neighbors_page"),
    ("heat_maps",),
    ("report", "compare"),
    ("report_card",),
    ("report_content",),
    ("report_facts",),
    ("suspects", "neighbors"),
    ("run_record", "plan_record"),
    ("explain",),
    ("evaluate", "predict", "embed", "features", "plan"),
    ("checkpoint",),
    ("checkpoint_content",),
    ("pages.",),
    ("training.",),
    ("data.", "models."),
    ("config",),
    ("config_checks", "config_errors", "config_text"),
    ("config_schema", "config_source"),
    ("config_model",),
    ("partial_array", "terminal_plot"),
    ("console", "tensor_files", "run_folder", "probe_candidates"),
    ("runtime", "distributed", "files", "pickle_check", "yaml12", "zoo", "cache_folder", "signals"),
    ("records",),
    ("errors",),
)
# Loaded for every command, also for help and for mistakes in a config.
START_UP = (
    "__main__", "cli", "usage", "console", "config", "config_checks", "config_errors",
    "config_model", "config_schema", "config_source", "config_text", "yaml12", "zoo", "files",
    "run_folder", "records", "errors", "init", "cache_folder", "signals", "commands.backbones",
    "commands.cache", "commands.check", "commands.compare", "commands.config", "commands.embed",
    "commands.env", "commands.evaluate", "commands.explain", "commands.fit", "commands.options",
    "commands.neighbors", "commands.outcomes", "commands.predict", "commands.probe",
    "commands.report", "commands.sample", "commands.suspects", "commands.together",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "numpy", "PIL", "safetensors")
PRINTERS = ("cli", "console")


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
    found = set()
    for node in ast.walk(trees()[module]):
        for name in imported_names(node):
            parts = name.split(".")
            if parts[0] != "vtrain":
                continue
            for length in (3, 2):
                candidate = ".".join(parts[1:length])
                if candidate in trees():
                    found.add(candidate)
                    break
    return found


def find_layer(module: str) -> int:
    for number, row in enumerate(LAYERS):
        for entry in row:
            if module == entry or (entry.endswith(".") and module.startswith(entry)):
                return number
    raise AssertionError(f"vtrain/{module}.py has no layer: add it to LAYERS")


def folder_of(module: str) -> str:
    return module.partition(".")[0] if "." in module else ""


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        yield from imported_names(node)


# --- imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", module_names())
def test_imports_point_one_way(module: str) -> None:
    own = find_layer(module)
    for other in internal_imports(module):
        layer = find_layer(other)
        same_folder = folder_of(module) != "" and folder_of(module) == folder_of(other)
        assert layer > own or same_folder, (
            f"{module} imports {other}, which stands beside or above it"
        )


def test_data_and_models_do_not_know_each_other() -> None:
    for module in module_names():
        others = {folder_of(other) for other in internal_imports(module)}
        if folder_of(module) == "data":
            assert "models" not in others, module
        if folder_of(module) == "models":
            assert "data" not in others, module


def test_no_import_cycles() -> None:
    graph = {module: internal_imports(module) for module in module_names()}
    done: set[str] = set()
    while len(done) < len(graph):
        free = {module for module, needs in graph.items() if needs <= done} - done
        assert free, f"a cycle among {sorted(set(graph) - done)}"
        done |= free


def test_layers_name_modules_that_exist() -> None:
    modules = module_names()
    for entry in [entry for row in LAYERS for entry in row]:
        assert any(
            name == entry or (entry.endswith(".") and name.startswith(entry)) for name in modules
        ), entry
    assert set(START_UP) <= set(modules)
    assert sum(len(internal_imports(module)) for module in modules) > 100


def test_init_files_are_empty() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert path.read_bytes() == b"", path


@pytest.mark.parametrize("module", START_UP)
def test_start_up_modules_import_nothing_heavy_at_their_top(module: str) -> None:
    for name in top_level_imports(trees()[module]):
        assert name.partition(".")[0] not in HEAVY, name


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
            # pathlib has no lexists() before Python 3.12.
            assert not used.startswith("os.path.") or used == "os.path.lexists", used
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
            assert length <= 40, f"{node.name} has {length} lines"


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
    "check", "compare", "explain", "neighbors", "probe", "report", "suspects",
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
