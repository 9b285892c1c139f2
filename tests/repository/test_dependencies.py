"""What the code imports is declared, and what is declared is pinned."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"ptsa_serve", "training", "export", "benchmarks", "tests"}

# Which extras may be counted on; every folder has the base dependencies.
EXTRAS = {
    "ptsa_serve": ("cpu", "gpu", "openvino", "tensorrt"),
    "training": ("train", "cpu"),
    "export": ("train", "cpu"),
    "benchmarks": ("train", "cpu", "dev"),
    "tests": ("train", "cpu", "dev"),
}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normalised(re.split(r"[\s\[<>=!~;]", requirement)[0]) for requirement in requirements}


def declared(folder: str) -> set[str]:
    extras = PROJECT["optional-dependencies"]
    return names(PROJECT["dependencies"]).union(*(names(extras[extra]) for extra in EXTRAS[folder]))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", EXTRAS)
def test_imports_are_declared(folder: str) -> None:
    distributions = packages_distributions()
    # pydantic's own core, which it re-exports only in part; torchvision comes with timm and must follow torch.
    allowed = declared(folder) | {"pydantic-core", "torchvision"}
    used = {(module, path) for path in (ROOT / folder).rglob("*.py") for module in imports(path)}
    missing = {
        f"{path.relative_to(ROOT)} imports {module}"
        for module, path in used
        if module not in OURS | set(sys.stdlib_module_names)
        and not {normalised(name) for name in distributions.get(module, [module])} & allowed
    }
    assert used
    assert not missing, "declare in pyproject.toml: " + "; ".join(sorted(missing))


def test_what_is_declared_is_pinned() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {normalised(line.split("==")[0]) for line in text.splitlines() if "==" in line}
    extras = PROJECT["optional-dependencies"]
    tested = names(PROJECT["dependencies"]).union(
        *(names(extras[extra]) for extra in ("cpu", "train", "label", "dev", "tensorrt-rtx"))
    )
    assert tested <= pins, f"pin the tested versions of {sorted(tested - pins)} in constraints.txt"


def test_torch_and_torchvision_are_a_pair() -> None:
    # Without both, timm pulls in the newest torchvision and with it another torch.
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==2\.13\.0$", text, re.MULTILINE)
    assert re.search(r"^torchvision==0\.28\.0$", text, re.MULTILINE)


def test_every_installation_of_the_makefile_is_constrained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
