"""What is done to a graph between the exporter and the file. One pass a file; each states what it needs and ensures.

The passes are of onnx-ir's kind: its runner checks the conditions and names the pass that failed.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass

from export.passes.channels_last import ChannelsLast
from export.passes.compact_masks import CompactMasks
from export.passes.externalise import Externalise
from export.passes.name_weights import TRANSPOSED, NameWeights
from export.passes.strip_metadata import StripMetadata

__all__ = ["TRANSPOSED", "ChannelsLast", "CompactMasks", "Externalise", "NameWeights", "StripMetadata", "tidy"]

_ANY_SIZE = 2**40


def tidy(model: ir.Model, parameters: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Make `model`, fresh from the exporter, small and its names stable; in place.

    parameters: float32 arrays by name. Returns the names of the weights in the graph: a parameter's, with
    `TRANSPOSED` behind it where the graph holds it so. They are what `Externalise` takes out of the file.
    """
    naming = NameWeights(parameters)
    ir.passes.Sequential(
        ChannelsLast(),
        RemoveUnusedNodesPass(),
        DeduplicateInitializersPass(size_limit=_ANY_SIZE),
        CompactMasks(),
        naming,
        StripMetadata(),
    )(model)
    return naming.found
