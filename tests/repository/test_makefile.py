"""`make` sets up and serves in a checkout whose path holds letters that shells and pip split or expand."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for the interpreter: makes an "environment" that holds itself, and writes down what it is asked.
STUB = """#!/bin/sh
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"-c "* | --version) ;;
    *) for file in $PIP_CONSTRAINT; do [ -f "$file" ] || { echo "no constraints: $file" >&2; exit 1; }; done
       echo "$*" >> asked ;;
esac
"""


@pytest.mark.parametrize("name", ["a b", 'o\'ut "x"', "$HOME `ls`", "é #1;&", "a,b=c%d\\e"])
def test_make_works_in_any_path(tmp_path: Path, name: str) -> None:
    checkout = tmp_path / name
    checkout.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, checkout)
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PIP_"))}

    def make(*arguments: str) -> str:
        done = subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=checkout,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "make serve" in make("help")
    make("serve", "PORT=8080", f"PYTHON={stub}")
    asked = (checkout / "asked").read_text().splitlines()
    assert "pip install" in asked[0]
    assert asked[-1] == "-m ptsa_serve serve --port 8080"
