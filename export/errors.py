"""What export raises for a user's mistake, beside the errors of training and ptsa_serve, and OSError.

ExportError       a request that cannot be met
├── AccuracyError a lower precision loses more of a task's metric than is allowed
├── EmitError     the ONNX exporter made something else than was asked for
└── ParityError   two forms of one model disagree
"""

__all__ = ["AccuracyError", "EmitError", "ExportError", "ParityError"]


class ExportError(Exception):
    """Root of export's own errors; the message says what was found and what to do."""


class EmitError(ExportError):
    """The exporter's graph has other inputs, outputs or operators than it must have."""


class ParityError(ExportError):
    """Training form, folded network and engine do not give the same maps: no artifact is written."""


class AccuracyError(ExportError):
    """A lower precision loses more of a task's metric than is allowed: no artifact is written."""
