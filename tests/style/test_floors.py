"""The floor rule and the measure of a line, read off the source."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    "core": 0, "kernels": 0, "numerics": 1,
    "detector": 2, "astrometry": 2, "psf": 2, "photometry": 2, "coadd": 2, "subtraction": 2, "lightcurves": 2,
    "movers": 2, "alerts": 2, "qa": 2,
    "parallel": 3, "archive": 3, "settings": 3, "pipelines": 4, "production": 5,
}  # fmt: skip
ONLY_IN = {
    "mpi4py": "parallel", "petsc4py": "parallel", "h5py": "archive", "sqlalchemy": "archive", "psycopg": "archive",
    "astropy.io.fits": "archive", "pyarrow": "archive", "sqlite3": "archive",
}  # fmt: skip
#: Pure functions have no business with files, processes or the clock.
NOT_BELOW_3 = {"os", "pathlib", "subprocess", "logging", "time", "datetime", "random", "yaml", "shutil", "tempfile"}
PACKAGE = sorted((ROOT / "zsds_hpc").rglob("*.py"))
OTHERS = sorted(p for top in ("drivers", "tools", "benchmarks") for p in (ROOT / top).rglob("*.py"))
MOST_LINES_FUNCTION, MOST_LINES_FILE, MOST_ARGUMENTS = 60, 600, 8


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "zsds_hpc").with_suffix("").parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path) -> set[str]:
    """Full names of what a module imports, `from a import b` counting as `a` and `a.b`."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def functions(path: Path):
    """(function, class or None, is public at module or class level)."""
    body = [(node, None) for node in tree_of(path).body]
    body += [(node, owner) for owner, _ in body if isinstance(owner, ast.ClassDef) for node in owner.body]
    for node, owner in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            hidden = node.name.startswith("_") or (owner is not None and owner.name.startswith("_"))
            yield node, owner, not hidden


def length(node: ast.AST) -> int:
    """Lines of a function without its docstring."""
    doc = ast.get_docstring(node, clean=False) or ""
    return node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)


def test_there_is_something_to_check():
    assert len(PACKAGE) > 40
    assert {room_of(path) for path in PACKAGE} - {""} <= set(FLOORS)


def test_imports_go_down():
    wrong = []
    for path in PACKAGE:
        here = FLOORS.get(room_of(path))
        for name in imported(path):
            parts = name.split(".")
            ours = here is not None and parts[0] == "zsds_hpc" and len(parts) > 1
            if ours and FLOORS.get(parts[1], 0) > here:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_rooms_of_floor_3_and_pipelines_do_not_form_cycles():
    edges = {}
    for path in PACKAGE:
        module = "zsds_hpc." + ".".join(path.relative_to(ROOT / "zsds_hpc").with_suffix("").parts)
        top_level = [n for n in tree_of(path).body if isinstance(n, ast.ImportFrom)]
        names = {str(n.module) for n in top_level} | {f"{n.module}.{a.name}" for n in top_level for a in n.names}
        edges[module] = {name for name in names if name.startswith("zsds_hpc.")}
    modules = set(edges)

    def reach(start):
        seen, todo = set(), [start]
        while todo:
            for name in edges[todo.pop()] & modules - seen:
                seen.add(name)
                todo.append(name)
        return seen

    assert [module for module in modules if module in reach(module)] == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_library_stays_in_its_room(library):
    where = [p for p in PACKAGE if any(begins(name, library) for name in imported(p))]
    assert [str(p.relative_to(ROOT)) for p in where if room_of(p) != ONLY_IN[library]] == []


def test_pure_floors_touch_no_files_and_no_clock():
    wrong = []
    for path in PACKAGE:
        if FLOORS.get(room_of(path), 9) <= 2:
            roots = {name.split(".")[0] for name in imported(path)}
            allowed = {"datetime"} if room_of(path) == "core" else set()
            wrong += [f"{path.relative_to(ROOT)}: {name}" for name in roots & NOT_BELOW_3 - allowed]
            calls = {n.func.id for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
            wrong += [f"{path.relative_to(ROOT)}: {name}()" for name in calls & {"open", "print", "input", "exec"}]
            wrong += [f"{path.relative_to(ROOT)}: global" for n in ast.walk(tree_of(path)) if isinstance(n, ast.Global)]
    assert not wrong, wrong


def test_simulator_is_independent():
    wrong = []
    for path in (ROOT / "tools" / "skysim").rglob("*.py"):
        ours = {name for name in imported(path) if begins(name, "zsds_hpc")}
        wrong += [f"{path.name}: {n}" for n in ours if not begins(n, "zsds_hpc.parallel")]
        assert not any(begins(name, "zsds_hpc.pipelines") for name in ours)
    assert not wrong, wrong


def test_drivers_are_thin_and_named_as_their_pipelines():
    from zsds_hpc.pipelines.registry import NAMES

    drivers = sorted((ROOT / "drivers").glob("*.py"))
    assert {path.stem for path in drivers} >= set(NAMES)
    for name in NAMES:
        assert (ROOT / "config" / "pipelines" / f"{name}.yml").is_file()
        assert f'main("{name}")' in (ROOT / "drivers" / f"{name}.py").read_text()


def test_public_names_have_docstrings():
    bare = []
    for path in PACKAGE + [p for p in OTHERS if "benchmarks" not in p.parts]:
        where = path.relative_to(ROOT)
        if ast.get_docstring(tree_of(path)) is None and path.read_text().strip():
            bare.append(f"{where}: module")
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{where}: {node.name}")
        bare += [f"{where}: {n.name}" for n, _, public in functions(path) if public and not ast.get_docstring(n)]
    assert not bare, bare


def test_functions_are_short_and_files_too():
    long = []
    for path in PACKAGE + OTHERS:
        where = path.relative_to(ROOT)
        n_lines = path.read_text().count("\n")
        long += [f"{where}: {n_lines} lines"] * (n_lines > MOST_LINES_FILE)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and length(node) > MOST_LINES_FUNCTION:
                long.append(f"{where}:{node.lineno} {node.name}: {length(node)} lines")
    assert not long, long


def test_no_function_of_many_arguments():
    many = []
    for path in PACKAGE:
        for node, owner, _ in functions(path):
            is_static = any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list)
            n = len(node.args.args) + len(node.args.kwonlyargs) - (owner is not None and not is_static)
            if n > MOST_ARGUMENTS:
                many.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {n}")
    assert not many, many


def test_no_error_is_swallowed():
    wrong = []
    for path in PACKAGE + OTHERS:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                names = {getattr(n, "id", "") for n in ast.walk(node.type)} if node.type else {"everything"}
                is_broad = names & {"everything", "Exception", "BaseException"}
                if is_broad and all(isinstance(n, (ast.Pass, ast.Continue)) for n in node.body):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong
