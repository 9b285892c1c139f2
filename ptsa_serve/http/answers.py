"""From a Prediction to the bytes of an answer: what was asked for decides the encoder."""

from ptsa_serve.encoding.encode import render_png, to_json, to_npz, to_zip
from ptsa_serve.http.negotiate import Ask, Draw
from ptsa_serve.prediction import Prediction
from ptsa_serve.predictor import Prepared

__all__ = ["body", "drawing"]


def body(prediction: Prediction, ask: Ask) -> bytes:
    """All maps that `ask` names, in its format."""
    match ask.format:
        case "zip":
            return to_zip(prediction)
        case "npz":
            return to_npz(prediction, compress=ask.compress, dtype=ask.dtype)
        case "json":
            return to_json(prediction)


def drawing(prediction: Prediction, prepared: Prepared, draw: Draw) -> bytes:
    """The one map that `draw` names, as a PNG; an overlay needs `prepared.image`."""
    return render_png(prediction, draw.task, draw.render, image=prepared.image, opacity=draw.opacity)
