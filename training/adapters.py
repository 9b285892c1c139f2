"""Task-grouped low-rank adapters: one frozen linear layer, one adapter for each stream that passes through it.

y_g = (W + scale * up_g @ down_g) x_g + b.  Source: LoRA (arXiv 2106.09685), grouped by PTSA (arXiv 2509.19602);
scale 4.0, dropout 0.05 on the adapter's input and the initialisation as in MTLoRA (arXiv 2403.20320).

Letters: g streams, N images, r rank.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["SCALE", "StreamLinear"]

SCALE = 4.0
DROPOUT = 0.05


class StreamLinear(nn.Module):
    """A frozen linear layer with `streams` adapters of one rank.

    Input (g * N, ..., in): the active streams stacked on the batch axis, stream by stream; output the same with `out`.
    With up = 0, as at the start, it is the frozen layer exactly.
    """

    def __init__(self, frozen: nn.Linear, *, streams: int, rank: int, scale: float = SCALE, dropout: float = DROPOUT):
        super().__init__()
        self.frozen = frozen
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(torch.empty(streams, rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(streams, frozen.out_features, rank))
        for factor in self.down:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        # Which adapters the stacked streams use, in order; the backbone sets it when only some tasks are asked for.
        self.active: list[int] = list(range(streams))

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(x)
        z = self.dropout(x).reshape(len(self.active), -1, x.shape[-1])
        down, up = self.down, self.up
        if len(self.active) != len(down):
            down, up = down[self.active], up[self.active]
        low = torch.bmm(z, down.transpose(1, 2))
        # The scale goes on the small factor: exact, and cheaper than on the wide output.
        return y + torch.bmm(low * self.scale, up.transpose(1, 2)).reshape(y.shape)

    def folded(self, stream: int) -> Tensor:
        """The weight (out, in), float32, of the plain linear layer that does the same for one stream."""
        with torch.no_grad():
            update = self.up[stream].float() @ self.down[stream].float()
            return self.frozen.weight.float() + self.scale * update

    def extra_repr(self) -> str:
        return f"streams={len(self.down)}, rank={self.down.shape[1]}, scale={self.scale}"
