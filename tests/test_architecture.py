"""Who may import whom: every file only from floors below its own."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "mdeq_jax"

# Rooms on the same floor do not know each other. `data` and `viz` import no other room.
FLOORS = {
    "tree": 0,
    "backend": 0,
    "pallas": 0,
    "solvers": 1,
    "implicit": 2,
    "layers": 3,
    "models": 4,
    "data": 4,
    "viz": 4,
    "training": 5,
    "convert": 5,
    "scripts": 6,
}
STANDALONE = {"data", "viz"}
MAX_LINES = 320


def room_of(path: Path) -> str:
    if path.parent == REPOSITORY:
        return "scripts"
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
                rooms.add(parts[1])
    return rooms


FILES = sorted(PACKAGE.rglob("*.py")) + sorted(REPOSITORY.glob("*.py"))
FILES = [path for path in FILES if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_only_from_lower_floors(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert FLOORS[other] < FLOORS[room], f"{path} ({room}) imports {other}"
        assert room not in STANDALONE, f"{path}: {room} imports no other room, but {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_are_small(path):
    limit = 80 if room_of(path) == "scripts" else MAX_LINES
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("*.py")), ids=lambda p: p.stem
)
def test_configs_import_only_ml_collections_and_each_other(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in ("configs", "ml_collections")
        elif isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= {"ml_collections"}
