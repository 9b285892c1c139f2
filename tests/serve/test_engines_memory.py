"""What an engine takes of memory with the shipped model: all five sizes, photos alone and side by side."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_RUN = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import psutil
from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import EngineOptions, load_engine
name, precision, prefer = sys.argv[1:]
engine = load_engine(name, Artifact.open(default_artifact()), EngineOptions(2, precision=precision, prefer=prefer))
photos = [np.zeros((1, *size, 3), np.uint8) for size in engine.sizes]
for photo in photos:
    engine.run(photo)
with ThreadPoolExecutor(engine.lanes) as pool:
    list(pool.map(lambda photo: engine.run(photo, alone=False), photos * 2))
print(psutil.Process().memory_info().rss / 1e6)
"""


def resident(name: str, precision: str, prefer: str) -> float:
    """MB of 10^6 bytes, of the whole process, after the last run."""
    # As `ptsa serve` sets it.
    environ = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", _RUN, name, precision, prefer]
    return float(subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries keep what was freed")
@pytest.mark.parametrize(("name", "precision", "speed", "memory"), [
    ("onnxruntime", "fp32", 520, 320), ("openvino", "int8", 900, 700),
])  # fmt: skip
def test_memory_stays_below_what_is_promised(name: str, precision: str, speed: float, memory: float):
    """The README's figures are of the server, which takes 80 MB more."""
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'ptsa-serve[cpu,openvino]'")
    assert resident(name, precision, "memory") < memory
    assert resident(name, precision, "speed") < speed
