"""What a command prints that is more than a result: a text, and whether it ends well."""

from dataclasses import dataclass

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """failed: the command ends with exit code 1."""

    text: str
    failed: bool = False
