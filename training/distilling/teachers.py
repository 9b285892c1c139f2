"""Small pre-trained networks to distil from: a JSON graph of operators and a safetensors file of weights.

The graphs were converted from public TensorFlow Lite files (Apache-2.0), batch norm folded. `names` maps the
places a student can learn from (`stride4`, `stride8`, `stride16`, `stride32`, `last`, `logits`) to tensors.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import CheckpointError

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """A frozen network; calling it gives its named feature maps.

    Input (N, 3, H, W), RGB 0...255, any float type and any size. Returns place -> (N, C, h, w) for every name in
    `names`, in the input's type. Raises FileNotFoundError if `stem`.json or `stem`.safetensors is missing,
    CheckpointError if they are damaged or do not belong together.
    """

    def __init__(self, stem: Path | str) -> None:
        super().__init__()
        stem = Path(stem)
        for suffix in (".json", ".safetensors"):
            if not Path(f"{stem}{suffix}").is_file():
                raise FileNotFoundError(
                    f"{stem}{suffix}: no such file; a teacher is a pair NAME.json, NAME.safetensors"
                )
        try:
            self._load(json.loads(Path(f"{stem}.json").read_text()), load_file(f"{stem}.safetensors"))
            # Once through, so that whatever a damaged graph lacks is found now.
            self(torch.zeros(1, 3, 32, 32))
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"teacher {stem}: the .json and .safetensors are damaged or not of one network ({reason}); "
                "copy both again"
            ) from None

    def _load(self, graph: dict, weights: dict[str, Tensor]) -> None:
        self.names: dict[str, str] = graph["names"]
        self._input: str = graph["input"]
        last = max(i for i, op in enumerate(graph["ops"]) if op["out"] in self.names.values())
        self._ops = graph["ops"][: last + 1]
        for name, tensor in weights.items():
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.register_buffer(name.replace(".", "_"), tensor.float())

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = {self._input: (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)}
        for op in self._ops:
            values[op["out"]] = self._run_op(op, [values[name] for name in op["in"]])
        return {place: values[name] for place, name in self.names.items()}

    def _run_op(self, op: dict, inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        match op["op"]:
            case "CONV_2D" | "DEPTHWISE_CONV_2D":
                return self._convolve(op, x)
            case "ADD":
                return x + inputs[1]
            case "AVERAGE_POOL_2D":  # both graphs pool the whole map
                return x.mean((2, 3), keepdim=True)
            case "CONCATENATION":
                size = inputs[-1].shape[2:]
                return torch.cat([v.expand(-1, -1, *size) for v in inputs], 1)
            case _:  # QUANTIZE, RESHAPE, RESIZE_BILINEAR of constant or final maps
                return x

    def _convolve(self, op: dict, x: Tensor) -> Tensor:
        weight: Tensor = getattr(self, f"{op['out']}_weight").to(x.dtype)
        bias: Tensor = getattr(self, f"{op['out']}_bias").to(x.dtype)
        stride, dilation, kernel = op["stride"], op["dilation"], weight.shape[-1]
        if op["padding"] == "same" and kernel > 1:  # TensorFlow puts the odd pixel at the end
            pads: list[int] = []
            for size in (x.shape[3], x.shape[2]):
                total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        groups = weight.shape[0] if op["op"].startswith("DEPTHWISE") else 1
        y = F.conv2d(x, weight, bias, stride=stride, dilation=dilation, groups=groups)
        if op["relu6"]:
            return y.clamp(0, 6)
        return y.relu() if op["relu"] else y
