"""Files and functions stay small enough to read: at most 300 lines a file, 40 a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ptsa_serve", "training", "export", "benchmarks")
FILE_LINES = 300
FUNCTION_LINES = 40

# Tables: long because they list things, read from top to bottom.
TABLES = {"ptsa_serve/tasks.py"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the function without its docstring, which may be as long as it must."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    long = [f"{f.name} ({body_lines(f)} lines)" for f in functions(ast.parse(text)) if body_lines(f) > FUNCTION_LINES]
    assert not long, f"{name}: split {', '.join(long)}"
    if name not in TABLES:
        assert len(text.splitlines()) <= FILE_LINES, f"{name} has {len(text.splitlines())} lines: split it by idea"


def test_every_package_is_measured() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources()} == set(PACKAGES)


def test_long_function_is_noticed() -> None:
    tree = ast.parse("def f():\n" + "    x = 1\n" * FUNCTION_LINES)
    assert body_lines(next(functions(tree))) == FUNCTION_LINES + 1


def test_docstring_does_not_count() -> None:
    tree = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')
    assert body_lines(next(functions(tree))) == 2


def test_no_attic_modules() -> None:
    attics = {"utils", "helpers", "common", "misc"}
    assert not [path for path in sources() if attics & {path.stem, path.parent.name}]


def test_tests_have_no_init_files() -> None:
    # tests/training/__init__.py would shadow the real `training`.
    assert not list((ROOT / "tests").rglob("__init__.py"))
