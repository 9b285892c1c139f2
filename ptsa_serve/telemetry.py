"""Usage reports of the libraries that we stand on: switched off, in every process that imports this package.

Each reads its variable once, at its import or soon after, hence the call in `ptsa_serve/__init__.py`. Values that the
environment holds already are replaced: `BENTOML_DO_NOT_TRACK=1` looks like an opt-out and is none.
"""

import os
import sys

__all__ = ["OPT_OUT", "opt_out"]

# ONNX Runtime 1.32's wheels for Linux write a device id below ~/.cache/Microsoft and send events from the first
# import on. BentoML sends each command and, while serving, the counts of its metrics; only exactly "true" stops it.
# The hub's client, which timm uses, adds what it knows of the machine to its requests.
OPT_OUT: dict[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


# OpenVINO reports each import, and knows no variable against it; without this module it uses a stub of its own.
_REPORTER = "openvino_telemetry"


def opt_out() -> None:
    """Set the variables of `OPT_OUT` for this process and its children; let OpenVINO's reporter not be found in it."""
    os.environ.update(OPT_OUT)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # what makes an import fail
