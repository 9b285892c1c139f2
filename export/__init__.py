"""From a checkpoint to an artifact: adapters folded, shared stages kept once, one ONNX graph for each size."""

import training._torchvision  # noqa: F401  must run before anything imports timm
