"""From a checkpoint to an artifact: adapters folded, shared stages kept once, one ONNX graph for each size."""

import ptsa_serve  # noqa: F401  switches off usage reports, so before any library
import training._torchvision  # noqa: F401  must run before anything imports timm
