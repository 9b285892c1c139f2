"""Teachers with labels, the table of them, and what `python -m training label` makes of their maps."""

from collections.abc import Mapping

from training.labelling import ade20k, room
from training.labelling.base import TeacherKind
from training.labelling.u2net import U2Net

__all__ = ["TEACHERS"]

_LITERT = {"ai_edge_litert": "ai-edge-litert"}

TEACHERS: Mapping[str, TeacherKind] = {
    "u2net": TeacherKind(("saliency",), ("u2netp.onnx",), U2Net, {"onnxruntime": "onnxruntime"}),
    "ade20k": TeacherKind(("segmentation",), ade20k.FILES, ade20k.ADETeacher, _LITERT),
    "room": TeacherKind(("segmentation", "depth", "normals"), room.FILES, room.RoomTeacher, _LITERT),
}
