"""Imports point benchmarks -> export -> training -> ptsa_serve; the runtime never sees torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("torch", "torchvision", "timm", "lightning", "onnx", "training", "export", "benchmarks")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_contracts_hold() -> None:
    # In its own process: the linter changes sys.path and the working directory of the one it runs in.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = run("-c", code, "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_every_runtime_module_imports_without_torch() -> None:
    code = f"""
import importlib, pkgutil, sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise AssertionError("imports " + name)

sys.meta_path.insert(0, Forbid())
import ptsa_serve
names = [m.name for m in pkgutil.walk_packages(ptsa_serve.__path__, "ptsa_serve.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 5


def test_importing_the_package_is_cheap() -> None:
    done = run("-c", "import sys, ptsa_serve; print('bentoml' in sys.modules, 'numpy' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr
