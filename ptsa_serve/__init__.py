"""Dense maps of one photo from one forward pass: the runtime, its service and its client."""

__all__ = ["__version__"]

__version__ = "1.0.0"
