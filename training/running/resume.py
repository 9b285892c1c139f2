"""What a killed run goes on from, and whether it is this run: settings are stored with it and compared."""

import io
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from training.errors import ConfigError, ResumeError
from training.network.checkpoint import write_whole

__all__ = [
    "announce",
    "claim",
    "differences",
    "make_usable",
    "note",
    "read_state",
    "say_how_far",
    "settle",
    "write_state",
]


def note(line: str) -> None:
    """Tell whoever watches the run."""
    sys.stderr.write(f"{line}\n")


def announce(settings: Mapping[str, Any]) -> None:
    """Tell whoever watches what is about to be run: every setting as it is applied, as YAML."""
    note(yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, width=120).rstrip())


def say_how_far(out: Path, step: int, steps: int) -> None:
    """Tell whoever watches that a run is not begun anew."""
    if step < steps:
        note(f"{out}: {step} of {steps} steps are done, going on from there")
    else:
        note(f"{out}: this run is finished; to train more, name a new --out folder and --start from its weights")


def write_state(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write `state` and the settings of the run that it belongs to, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({**state, "settings": dict(settings)}, buffer)
    write_whole(path, buffer.getvalue())


def read_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state in `path`, on the CPU. Raises ResumeError if it is damaged or of a run with other settings."""
    anew = "remove it to begin anew, or name another --out folder"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch itself does not look at the checksums that it writes
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch's reader raises whatever it stumbles over
        raise ResumeError(f"{path} is damaged; {anew}") from None
    if "settings" not in state:
        raise ResumeError(f"{path} is of an older version, which did not store the run's settings; {anew}")
    if found := differences(state["settings"], settings):
        raise ResumeError(
            f"{path.parent} holds a run with other settings: {'; '.join(found)}. Put them back to go on with "
            "that run, or name a new --out folder (with --start, a new run takes over what was learnt)"
        )
    return state


def claim(out: Path, resume: str, result: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state to go on from if the folder `out` holds this run, None if it is new; it is made and can be written to.

    resume, result: names of the run's files. Raises ConfigError if the folder cannot be used, ResumeError if it holds
    another run, or weights of which nobody knows how they were made.
    """
    if (out / resume).exists():
        state = read_state(out / resume, settings)
    elif (out / result).exists():
        raise ResumeError(
            f"{out} holds {result} but no {resume}: weights of another run, which this one would replace; "
            "name a new --out folder"
        )
    else:
        state = None
    make_usable(out)
    return state


def settle(path: Path, settings: Mapping[str, Any], *, grows: str = "") -> None:
    """Write down the settings that all in the folder of `path` depends on.

    grows: the name of a mapping among them that others may be added to. Raises ResumeError if other settings stand
    there already, ConfigError if the folder cannot be used.
    """
    make_usable(path.parent)
    wanted = dict(settings)
    if path.exists():
        try:
            before = dict(json.loads(path.read_bytes()))
            if grows:
                wanted[grows] = before[grows] | settings[grows]
                before[grows] = settings[grows] | before[grows]
        except (ValueError, TypeError, LookupError):
            raise ResumeError(f"{path} is damaged; name another --out folder") from None
        if found := differences(before, wanted):
            raise ResumeError(
                f"{path.parent} holds what was made with other settings: {'; '.join(found)}. Put them back to go on "
                "with it, or name a new --out folder"
            )
    write_whole(path, json.dumps(wanted, indent=2).encode() + b"\n")


def make_usable(out: Path) -> None:
    """Make the folder `out` if it is not there. Raises ConfigError if nothing can be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b"a full disk is found now")
    except OSError as error:
        reason = "it is a file" if out.is_file() else error.strerror
        raise ConfigError(f"--out {out} cannot be written to ({reason}); name another folder") from None


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs, by name, with both values."""
    before, now = dict(_flat(found)), dict(_flat(wanted))
    return [
        f"{name} was {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    """A value as a person reads it: of a checksum the beginning."""
    return f"{value[:12]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
