"""Window attention as the graph runs it: the position bias is one finished tensor, nothing is looked up."""

from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

__all__ = ["FoldedAttention"]


class FoldedAttention(nn.Module):
    """timm's `WindowAttention` in eval mode, same names and same result.

    timm gathers the bias from its table in every pass; exporters fold that lookup or not, depending on its size, and
    the graphs of two sizes would then hold different tensors. `position_bias` (1, heads, T, T), T tokens a window.
    """

    def __init__(self, attention: WindowAttention, position_bias: nn.Parameter) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.scale = attention.scale
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.position_bias = position_bias

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows (W, T, C) to the same; mask (windows of one photo, T, T), 0 or -100, or None."""
        windows, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1) + self.position_bias
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(-1, count, self.heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, tokens, tokens)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, tokens, channels))
