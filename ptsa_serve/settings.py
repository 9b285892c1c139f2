"""What an operator may set: one frozen object from PTSA_* variables, each wrong value named with what is allowed."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ptsa_serve.cores import usable_cores
from ptsa_serve.engines.base import Prefer
from ptsa_serve.errors import SettingsError
from ptsa_serve.images import PIXELS_CEILING, ImageLimits
from ptsa_serve.variants import Branches, Precision

__all__ = ["AUTO", "PREFIX", "Settings", "words"]

PREFIX = "PTSA_"
AUTO = "auto"  # of the engine: the one that was found to be the fastest here

Warm = Literal["all", "first"]

_MIB = 1024 * 1024

# What an HTTP header can hold whatever client sends it (RFC 9110 section 5.5), and is no riddle to type.
_KEY = r"[!-~][ -~]{6,}[!-~]"

# What Kubernetes tells every pod of a Service whose name begins with "ptsa", and Docker of a linked container: names,
# and the values that they have (kubernetes.io "Environment variables" of Services; docs.docker.com "Legacy container
# links"). PTSA_PORT=3000 is none of them: somebody wanted to set something.
_SERVICE_LINKS: tuple[tuple[str, str], ...] = (
    (r"(.*_)?SERVICE_HOST", r".*"),
    (r"(.*_)?SERVICE_PORT(_.*)?", r"[0-9]+"),
    (r"(.*_)?PORT(_[0-9]+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://.*"),
    (r"(.*_)?PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)", r".*"),
    (r"(.*_)?NAME", r"/.*"),
    (r"(.*_)?ENV_.*", r".*"),
)


class Settings(BaseSettings):
    """Limits and choices of one server process. Zero means "automatic" or "off", as each description says."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    model: Path | None = Field(None, description="folder of the model; unset: the one in the package")
    engine: str = Field(AUTO, description="runtime that runs the model; auto: the fastest here")
    precision: Precision | None = Field(None, description="numbers that the model is computed in; unset: the fastest")
    branches: Branches | None = Field(None, description="how the model holds its branches; unset: the fastest")
    prefer: Prefer = Field("speed", description="what counts more; memory: one run at a time, one copy of the weights")
    warm: Warm = Field("all", description="the model's sizes that are loaded at the start; first: others when needed")
    threads: int = Field(0, ge=0, le=1024, description="threads of the engine; 0: one for each core")
    workers: int = Field(0, ge=0, le=256, description="threads that decode and encode; 0: by the cores, at most 4")
    max_batch: int = Field(1, ge=1, le=64, description="photos of one size in one run of the model")
    max_bytes: int = Field(20 * _MIB, ge=1024, le=1024 * _MIB, description="bytes of one request body")
    max_pixels: int = Field(40_000_000, ge=256, le=PIXELS_CEILING, description="pixels of one photo")
    min_side: int = Field(16, ge=1, le=4096, description="shortest side of a photo in pixels")
    max_side: int = Field(16_384, ge=16, le=65_535, description="longest side of a photo in pixels")
    memory_mib: int = Field(1024, ge=64, le=1_048_576, description="MiB for photos, maps and unsent answers")
    queue: int = Field(64, ge=1, le=100_000, description="photos that may wait for the model")
    timeout_ms: int = Field(30_000, ge=10, le=600_000, description="longest time for one request")
    send_timeout_ms: int = Field(
        10_000, ge=100, le=600_000, description="longest time for a client to take 256 KiB of its answer"
    )
    quota: int = Field(0, ge=0, le=1_000_000, description="photos a minute for one client; 0: no quota")
    api_key: SecretStr | None = Field(None, description="key that clients must send, 8 characters or more; unset: none")
    drain_file: Path | None = Field(None, description="file whose presence takes the server out of rotation")
    drain_seconds: float = Field(5.0, ge=0, le=600, description="seconds of drain before new work is refused")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the PTSA_* variables of `environ` (default: of this process).

        Raises:
            SettingsError: all faults at once: variable, value found, what is allowed; unknown PTSA_* variables too, but
                those that Kubernetes and Docker make for services of such a name.
        """
        environ = os.environ if environ is None else environ
        found = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        found = {name: value for name, value in found.items() if not _is_service_link(name, value)}
        values = {name.removeprefix(PREFIX).lower(): value for name, value in found.items()}
        faults = [_unknown(name, cls) for name in found if name.removeprefix(PREFIX).lower() not in cls.model_fields]
        known = {field: value for field, value in values.items() if field in cls.model_fields and value != ""}
        try:
            settings = cls(**known)  # type: ignore[arg-type]  # pydantic parses the strings
        except ValidationError as error:
            faults += [_fault(item, cls) for item in error.errors(include_url=False)]
        else:
            faults += settings.contradictions()
            if not faults:
                return settings
        raise SettingsError("; ".join(faults))

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        """The key without the white space around it, which files of secrets end in and headers cannot hold."""
        if key is None:
            return None
        text = key.get_secret_value().strip()
        if not re.fullmatch(_KEY, text):
            raise ValueError("not 8 or more printable ASCII characters")
        return SecretStr(text)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from arguments alone: `load` is the one place that reads an environment."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    def contradictions(self) -> list[str]:
        """Faults that no single field shows."""
        from ptsa_serve.engines import ENGINES  # the table is light; its rows import their runtime when asked

        faults = []
        if self.engine not in (AUTO, *ENGINES):
            faults.append(f"PTSA_ENGINE is {self.engine!r}; use one of: {', '.join([AUTO, *sorted(ENGINES)])}")
        if self.min_side > self.max_side:
            faults.append(f"PTSA_MIN_SIDE is {self.min_side}, above PTSA_MAX_SIDE ({self.max_side}); lower it")
        return faults

    def limits(self) -> ImageLimits:
        """What a photo may be."""
        return ImageLimits(self.max_bytes, self.max_pixels, self.min_side, self.max_side)

    def decoders(self) -> int:
        """Threads that decode and encode."""
        return self.workers or max(2, min(4, usable_cores()))

    def describe(self) -> dict[str, Any]:
        """Every setting by variable name, for the line printed at start; the key itself is never shown."""
        shown = self.model_dump(exclude={"api_key"})
        shown["api_key"] = "set" if self.api_key else None
        return {f"{PREFIX}{name.upper()}": str(v) if isinstance(v, Path) else v for name, v in shown.items()}


def _is_service_link(name: str, value: str) -> bool:
    rest = name.removeprefix(PREFIX)
    return any(re.fullmatch(shape, rest) and re.fullmatch(known, value, re.S) for shape, known in _SERVICE_LINKS)


def _unknown(name: str, settings: type[Settings]) -> str:
    known = [f"{PREFIX}{field.upper()}" for field in settings.model_fields]
    close = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return f"{name} is not a setting; {advice}"


def _fault(error: ErrorDetails, settings: type[Settings]) -> str:
    field = str(error["loc"][0])
    info = settings.model_fields[field]
    low = next((m.ge for m in info.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in info.metadata if hasattr(m, "le")), None)
    if field == "api_key":
        return (
            "PTSA_API_KEY is too short, or no header can carry it; use at least 8 characters, of printable ASCII alone "
            "(letters, digits, signs), in one line"
        )
    if error["type"] == "literal_error":
        return (
            f"{PREFIX}{field.upper()} is {error['input']!r}; use one of: {', '.join(words(info))} ({info.description})"
        )
    kind = "a number" if info.annotation is float else "a whole number"
    return f"{PREFIX}{field.upper()} is {error['input']!r}; use {kind} from {low} to {high} ({info.description})"


def words(field: FieldInfo) -> tuple[str, ...]:
    """What a setting of certain words may be; empty for the others."""
    choices = get_args(field.annotation)
    return tuple(word for choice in choices for word in ([choice] if isinstance(choice, str) else get_args(choice)))
