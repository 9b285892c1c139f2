"""One loss a kind of task; pixels without a label count nothing, and a batch without any gives zero, never NaN.

Letters: N photos, h w loss resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ptsa_serve.tasks import Task
from training.data.labels import IGNORE, labelled
from training.network.heads import LOG_DEPTH, upsample

__all__ = ["class_weights", "task_loss"]

ON_BOUNDARY = 0.95


def task_loss(task: Task, raw: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean loss over labelled pixels, for raw planes (N, C, *, *) and a label (N, h, w) or (N, 3, h, w).

    `weights` (classes,) weigh the classes of a `classes` task.
    """
    planes = upsample(raw.float(), (label.shape[-2], label.shape[-1]))
    match task.kind:
        case "classes":
            return _classes(planes, label.long(), weights)
        case "metres":
            return _metres(planes[:, 0], label)
        case "unit_vectors":
            return _angle(planes, label)
        case "probability":
            return _saliency(planes[:, 0], label)
        case "boundary":
            return _boundary(planes[:, 0], label)


def class_weights(counts: Tensor, power: float = 0.35) -> Tensor:
    """Weights (classes,), mean 1 over pixels, that fall with a class's share of the pixels.

    Between none (power 0) and equal shares (power 1): rare classes count in mIoU as much as walls do. Without any
    pixels all weigh 1.
    """
    if not counts.any():
        return torch.ones(len(counts))
    share = counts.float() / counts.sum()
    weights = share.clamp_min(1e-4) ** -power
    return weights / (weights * share).sum()


def _classes(planes: Tensor, label: Tensor, weights: Tensor | None) -> Tensor:
    if not labelled("classes", label).any():
        return planes.sum() * 0
    return F.cross_entropy(planes, label, weight=weights, ignore_index=IGNORE)


def _metres(log_depth: Tensor, label: Tensor) -> Tensor:
    """|e| + e²/2 in metres and |e| of the logarithm: the figure is a root mean square, the near must be right too."""
    valid = labelled("metres", label)
    if not valid.any():
        return log_depth.sum() * 0
    predicted, true = log_depth[valid], label[valid]
    error = _within(predicted, *LOG_DEPTH).exp() - true
    return error.abs().mean() + 0.5 * error.square().clamp_max(9).mean() + (predicted - true.log()).abs().mean()


def _angle(planes: Tensor, label: Tensor) -> Tensor:
    """Mean angle in radians, the figure itself (Bae et al., arXiv 2109.09881, without their uncertainty)."""
    valid = labelled("unit_vectors", label, axis=1)
    if not valid.any():
        return planes.sum() * 0
    cosine = (F.normalize(planes, dim=1, eps=1e-6) * label).sum(1)[valid]
    # Inside (-1, 1), or the slope of acos is infinite.
    return torch.acos(_within(cosine, -1 + 1e-4, 1 - 1e-4)).mean()


def _saliency(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy plus one minus a soft IoU, averaged over the photos that have a label."""
    valid = labelled("probability", label).float()
    photos = valid.flatten(1).any(1)
    if not photos.any():
        return logits.sum() * 0
    target = (label == 1).float()
    entropy = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid).sum() / valid.sum()
    p = logits.sigmoid() * valid
    both = (p * target).sum((1, 2))
    either = (p + target * valid - p * target).sum((1, 2))
    return entropy + (1 - (both + 1) / (either + 1))[photos].mean()


def _boundary(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy in which the few pixels of boundaries weigh 0.95 and all others 0.05.

    Source of the weight: ASTMT (Maninis et al., CVPR 2019), and with it MTLoRA, on PASCAL and NYUD.
    """
    valid = labelled("boundary", label)
    if not valid.any():
        return logits.sum() * 0
    target = (label[valid] == 1).float()
    weight = (1 - ON_BOUNDARY) + (2 * ON_BOUNDARY - 1) * target
    return F.binary_cross_entropy_with_logits(logits[valid], target, weight=weight)


def _within(values: Tensor, low: float, high: float) -> Tensor:
    """`values` clamped, with the gradient of unclamped ones: what lies outside is still pulled back."""
    return values.clamp(low, high).detach() + (values - values.detach())
