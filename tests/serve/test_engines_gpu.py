"""What only a GPU can tell: each engine that is installed there gives the maps of the CPU, at any number of photos."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from export.plans import FLAVOURS, PlansConfig, build_plans
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine
from ptsa_serve.errors import PTSAError
from ptsa_serve.predictor import Predictor

pytestmark = pytest.mark.gpu

SIZE = (48, 64)


@pytest.fixture(scope="module")
def model(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model, with the plans that can be built here."""
    folder = shutil.copytree(tiny_artifact, tmp_path_factory.mktemp("gpu") / "model")
    for runtime in FLAVOURS:
        try:
            build_plans(PlansConfig(folder, runtime, batches=(1, 4)))
        except PTSAError:
            continue
    return Artifact.open(folder)


@pytest.mark.parametrize("name", [name for name, row in ENGINES.items() if row.device == "gpu"])
def test_maps_are_those_of_the_cpu(model: Artifact, name: str) -> None:
    try:
        engine = load_engine(name, model)
    except PTSAError as error:
        pytest.skip(str(error))
    reference = load_engine("onnxruntime", model, EngineOptions(threads=1))
    try:
        for count in (1, 3, 4, 9, 1):
            photos = np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)
            expected = reference.run(photos)
            for tasks in (None, ["depth"]):
                for task, values in engine.run(photos, tasks).items():
                    if values.dtype == np.uint8:
                        assert np.mean(values != expected[task]) < 1e-3, task
                    else:
                        np.testing.assert_allclose(values, expected[task], atol=1e-4, err_msg=task)
        Predictor(model, engine).verify()
    finally:
        engine.close()
