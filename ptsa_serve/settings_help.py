"""The settings as `ptsa serve --help` lists them; made from their fields, so that no list can go stale."""

from pydantic.fields import FieldInfo

from ptsa_serve.engines import ENGINES
from ptsa_serve.settings import AUTO, PREFIX, Settings, words

__all__ = ["rows"]

_BOUNDS = ("ge", "le")


def rows() -> list[tuple[str, str]]:
    """(variable, what it is, what is allowed and what holds without it) for each setting."""
    return [(f"{PREFIX}{name.upper()}", _text(name, field)) for name, field in Settings.model_fields.items()]


def _text(name: str, field: FieldInfo) -> str:
    bounds = {key: getattr(item, key) for item in field.metadata for key in _BOUNDS if hasattr(item, key)}
    facts = []
    if "ge" in bounds:
        facts.append(f"{bounds['ge']} to {bounds['le']}")
    if name == "engine":
        facts.append(f"one of: {', '.join([AUTO, *sorted(ENGINES)])}")
    if allowed := words(field):
        facts.append(f"one of: {', '.join(allowed)}")
    if field.default is not None:
        facts.append(f"default: {field.default}")
    return f"{field.description}  [{'; '.join(facts)}]" if facts else str(field.description)
