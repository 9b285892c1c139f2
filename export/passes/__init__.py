"""What is done to a graph between the exporter and the file. One pass a file; each states what it needs and ensures.

The passes are of onnx-ir's kind: its runner checks the conditions and names the pass that failed.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)

from export.passes.channels_last import ChannelsLast
from export.passes.compact_masks import CompactMasks
from export.passes.externalise import Externalise
from export.passes.fewer_rows import FewerRows
from export.passes.gather_rows import GatherRows
from export.passes.merge_reshapes import MergeReshapes
from export.passes.name_weights import TRANSPOSED, NameWeights
from export.passes.strip_metadata import StripMetadata

__all__ = [
    "TRANSPOSED",
    "ChannelsLast",
    "CompactMasks",
    "Externalise",
    "FewerRows",
    "GatherRows",
    "MergeReshapes",
    "NameWeights",
    "StripMetadata",
    "quicken",
    "tidy",
]

_ANY_SIZE = 2**40


def tidy(model: ir.Model, parameters: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Make `model`, fresh from the exporter, small and fast and its names stable; in place.

    parameters: float32 arrays by name. Returns the names of the weights in the graph: a parameter's, with
    `TRANSPOSED` behind it where the graph holds it so. They are what `Externalise` takes out of the file.
    """
    naming = NameWeights(parameters)
    once = DeduplicateInitializersPass(size_limit=_ANY_SIZE)
    once(model)
    quicken(model)
    # A number of the masks may be in the graph already.
    ir.passes.Sequential(CompactMasks(), once, naming, StripMetadata())(model)
    return naming.found


def quicken(model: ir.Model) -> None:
    """Let `model` compute the same in less time; in place. What it reads of weights is their shapes."""
    ir.passes.Sequential(
        ChannelsLast(),
        # What the exporter wrote down for each stream, or for each of q, k and v, once.
        CommonSubexpressionEliminationPass(),
        GatherRows(),
        RemoveUnusedNodesPass(),
        FewerRows(),
        RemoveUnusedNodesPass(),
        # Without a linear layer between them, a window's rows and its heads' rows are taken in one step.
        GatherRows(),
        RemoveUnusedNodesPass(),
        MergeReshapes(),
        RemoveUnusedNodesPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
    )(model)
