"""What a client asked for: query parameters, Accept and X-Deadline-Ms, checked once into a frozen record."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from starlette.datastructures import Headers, QueryParams

from ptsa_serve.errors import BadParameter, NotAcceptable

__all__ = [
    "FORMATS",
    "PNG",
    "Ask",
    "Draw",
    "accepted",
    "deadline_ms",
    "no_parameters",
    "parse_ask",
    "parse_draw",
    "preferred",
]

Format = Literal["zip", "npz", "json"]
Size = Literal["photo", "model"]

# Ways out of /v1/predict and their media types, in the order in which the server prefers them.
FORMATS: dict[str, str] = {"zip": "application/zip", "npz": "application/x-npz", "json": "application/json"}
PNG = "image/png"

DEFAULT_OPACITY = 0.6

# Members of a list: commas inside quotes divide nothing.
_LISTED = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')


@dataclass(frozen=True, slots=True)
class Ask:
    """All of /v1/predict's parameters; `tasks` in the model's order."""

    tasks: tuple[str, ...]
    format: Format
    size: Size
    compress: bool
    dtype: Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class Draw:
    """All of /v1/predict/{task}'s parameters."""

    task: str
    render: Literal["raw", "color", "overlay"]
    size: Size
    opacity: float


def parse_ask(query: QueryParams, accept: str, tasks: Sequence[str]) -> Ask:
    """What a request to /v1/predict wants of a model with `tasks`.

    Raises:
        BadParameter: an unknown parameter, one given twice, a value that is not allowed, or one that does not apply.
        NotAcceptable: no `format`, and an Accept header that fits none.
    """
    values = _single(query, ("tasks", "format", "size", "compress", "dtype"))
    wanted = _tasks(values["tasks"], tasks) if "tasks" in values else tuple(tasks)
    named = values.get("format")
    form = preferred(accept, FORMATS) if named is None else _choice("format", named, FORMATS)
    for name in ("compress", "dtype"):
        if name in values and form != "npz":
            raise BadParameter(f"{name} applies to format=npz alone, this is {form}; leave it out", parameter=name)
    return Ask(
        tasks=wanted,
        format=cast(Format, form),
        size=cast(Size, _choice("size", values.get("size", "photo"), ("photo", "model"))),
        compress=_choice("compress", values.get("compress", "0"), ("0", "1")) == "1",
        dtype=cast(
            Literal["float32", "float16"],
            _choice("dtype", values.get("dtype", "float32"), ("float32", "float16")),
        ),
    )


def parse_draw(query: QueryParams, accept: str, task: str) -> Draw:
    """What a request to /v1/predict/{task} wants; raises as `parse_ask`."""
    values = _single(query, ("render", "opacity", "size"))
    preferred(accept, {"png": PNG})
    render = _choice("render", values.get("render", "raw"), ("raw", "color", "overlay"))
    size = _choice("size", values.get("size", "photo"), ("photo", "model"))
    if "opacity" in values and render != "overlay":
        raise BadParameter(
            f"opacity applies to render=overlay alone, this is {render}; leave it out", parameter="opacity"
        )
    return Draw(
        task=task,
        render=cast(Literal["raw", "color", "overlay"], render),
        size=cast(Size, size),
        opacity=_fraction("opacity", values.get("opacity", str(DEFAULT_OPACITY))),
    )


def no_parameters(query: QueryParams) -> None:
    """Refuse any query parameter, on paths that take none."""
    _single(query, ())


def deadline_ms(header: str | None, longest: int) -> int:
    """Milliseconds that the client waits (X-Deadline-Ms), `longest` at most and by default.

    Raises:
        BadParameter: not a whole number from 1.
    """
    if header is None:
        return longest
    if not re.fullmatch(r"[0-9]{1,12}", header.strip()) or int(header) == 0:
        raise BadParameter(
            f"X-Deadline-Ms is {header[:32]!r}; use whole milliseconds from 1 (the server waits {longest} at most)",
            parameter="X-Deadline-Ms",
            allowed=[f"1...{longest}"],
        )
    return min(int(header), longest)


def accepted(headers: Headers) -> str:
    """The Accept header; several lines of it are one list (RFC 9110 section 5.3)."""
    return ", ".join(headers.getlist("accept"))


def preferred(accept: str, types: Mapping[str, str]) -> str:
    """The key of `types` (name -> media type) that `accept` likes best; the first of them where it does not care.

    Quality values and wildcards count as in RFC 9110 section 12.5.1: the most specific range that fits a type gives
    its quality, 0 refuses it. What is no range counts for nothing, a quality that is no number for 1; "*" is "*/*", as
    Java's oldest client writes it.

    Raises:
        NotAcceptable: every type is refused or unnamed.
    """
    found = [_range(part) for part in _LISTED.findall(accept)]
    ranges = [(media, quality) for media, quality in found if "/" in media]
    if not ranges:
        return next(iter(types))
    scored = [(_quality(media, ranges), name) for name, media in types.items()]
    best = max(quality for quality, _ in scored)
    if best <= 0:
        raise NotAcceptable(accept, types.values())
    return next(name for quality, name in scored if quality == best)


def _range(part: str) -> tuple[str, float]:
    media, *options = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for option in options:
        name, _, value = option.partition("=")
        if name.strip() == "q":
            quality = _weight(value.strip(' "'))
    return "*/*" if media == "*" else media, quality


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 1.0
    return 1.0 if math.isnan(weight) else min(max(weight, 0.0), 1.0)


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    family = media.split("/")[0] + "/*"
    for candidate in (media, family, "*/*"):
        found = [quality for name, quality in ranges if name == candidate]
        if found:
            return max(found)
    return 0.0


def _single(query: QueryParams, known: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise BadParameter(
                f"there is no parameter {name[:64]!r} here; known: {allowed}", parameter=name[:64], allowed=known
            )
        if name in values:
            raise BadParameter(f"{name} is given twice; give it once", parameter=name)
        values[name] = value
    return values


def _choice(name: str, value: str, allowed: Iterable[str]) -> str:
    allowed = tuple(allowed)
    if value not in allowed:
        raise BadParameter(
            f"{name} is {value[:64]!r}; use one of: {', '.join(allowed)}", parameter=name, allowed=allowed
        )
    return value


def _tasks(value: str, known: Sequence[str]) -> tuple[str, ...]:
    names = [_choice("tasks", name.strip(), known) for name in value.split(",")]
    return tuple(name for name in known if name in names)


def _fraction(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise BadParameter(f"{name} is {value[:32]!r}; use a number from 0 to 1", parameter=name, allowed=["0...1"])
    return number
