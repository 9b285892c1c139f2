"""Make `import torchvision` work beside a CPU build of torch; import this before timm and Lightning.

PyPI's only Linux wheel of torchvision is linked against CUDA. Beside a CPU torch its compiled part fails to load
quietly, and the import then dies with "operator torchvision::nms does not exist", taking timm with it.
Declaring the two operators' schemas is enough: nothing here calls them.
"""

import importlib.util

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

if torch.version.cuda is None and importlib.util.find_spec("torchvision") is not None:
    # Kept alive for the life of the process: the schemas go when the library object goes.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _schema in _SCHEMAS:
        _library.define(_schema)
