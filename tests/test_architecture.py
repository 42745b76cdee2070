"""Who may import whom: every file only from floors below its own."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "mdeq_jax"

# Commands inside a room: they may import all that a script may, and nothing imports them.
COMMANDS = {"viz/report.py": "viz.report", "viz/compare.py": "viz.compare"}
# A room imports only from floors below its own. `data` and `viz` import no other room except
# `extras`.
LAYOUT = [
    {"extras", "tree", "hardware", "parallel", "configs"},
    {"kernels"},
    {"solvers", "layers"},
    {"implicit"},
    {"models"},
    {"data", "viz"},
    {"tasks", "convert", "runtime"},
    {"diagnostics"},
    {"engine"},
    {"training", "pretrained"},  # `training` re-exports the engine
    {"train", "eval", "deploy", "export", "convert_torch_weights", *COMMANDS.values()},
    {"scripts"},
]
SCRIPTS = LAYOUT[-2]
FLOORS = {room: floor for floor, rooms in enumerate(LAYOUT) for room in rooms}
STANDALONE = {"data", "viz"}
# Rooms that know neither tasks nor families by name, and words that would show that they do.
NEUTRAL = ("engine", "runtime", "diagnostics")
FOREIGN_WORDS = re.compile(r"image|label|miou|mdeq_(?!jax)", re.IGNORECASE)
MAX_LINES = 300
MAX_FUNCTION_LINES = 60  # without the docstring


def room_of(path: Path) -> str:
    if path.parent == REPOSITORY:
        return "scripts"
    if (command := str(path.relative_to(PACKAGE))) in COMMANDS:
        return COMMANDS[command]
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "mdeq_jax" and len(parts) > 1:
                command = ".".join(parts[1:3])
                rooms.add(command if command in COMMANDS.values() else parts[1])
    return rooms


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, not counting the packages that hold them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if is_module(name)}
            if not all(is_module(name) for name in inner):
                names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    documented = ast.get_docstring(function) is not None
    return length(function) - (length(function.body[0]) if documented else 0)


def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


FILES = sorted(PACKAGE.rglob("*.py")) + sorted(REPOSITORY.glob("*.py"))
FILES = [path for path in FILES if path != PACKAGE / "__init__.py"]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.py"))
SIZED_FILES = FILES + CONFIGS + sorted((REPOSITORY / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_only_from_lower_floors(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room, "extras"}:
        assert FLOORS[other] < FLOORS[room], f"{path} ({room}) imports {other}"
        assert room not in STANDALONE, f"{path}: {room} imports no other room, but {other}"


@pytest.mark.parametrize("path", SIZED_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_are_small(path):
    limit = MAX_LINES
    if path.parent == REPOSITORY:
        limit = 20  # calls `run` of the module of the same name
    elif path.parent == PACKAGE and path.stem in SCRIPTS:
        limit = 110
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_functions_are_small(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f"{path}:{f.lineno}: {f.name}": lines_of_code(f) for f in functions}
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_import_only_ml_collections_and_each_other(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            # In a wheel they are `mdeq_jax.configs`, without a top-level `configs`.
            assert re.match(r"mdeq_jax\.configs\b|ml_collections\b", node.module or ""), node.module
        elif isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= {"ml_collections"}


NEUTRAL_FILES = [path for path in FILES if room_of(path) in NEUTRAL]


@pytest.mark.parametrize("path", NEUTRAL_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_engine_knows_no_task_and_no_family(path):
    lines = enumerate(path.read_text().splitlines(), start=1)
    found = [f"{path}:{n}: {line.strip()}" for n, line in lines if FOREIGN_WORDS.search(line)]
    assert not found, "\n".join(found)


def test_only_one_file_maps_over_devices():
    """A move from `pmap` to another mapping changes `runtime/devices.py` alone."""
    users = [path for path in FILES if "jax.pmap(" in path.read_text()]
    assert users == [PACKAGE / "runtime" / "devices.py"]


def test_no_cycles():
    """No file imports itself through others, when the module is loaded."""
    graph = {module_of(path): imported_modules(path) for path in PACKAGE.rglob("*.py")}
    graph = {module: imported & graph.keys() - {module} for module, imported in graph.items()}
    while leaves := [module for module, imported in graph.items() if not imported]:
        for module in leaves:
            del graph[module]
        for imported in graph.values():
            imported.difference_update(leaves)
    assert not graph, f"cycles among {sorted(graph)}"
