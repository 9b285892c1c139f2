"""Dense maps of one photo from one forward pass: the runtime, its service and its client."""

from ptsa_serve.telemetry import opt_out

__all__ = ["__version__"]

__version__ = "1.0.0"

opt_out()
