"""manifest.json: parsed once, every fault named, nothing lost on the way through."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsa_serve.errors import ManifestError
from ptsa_serve.manifest import Manifest
from ptsa_serve.tasks import TASKS

WORDS = st.text("abcdefghijk", min_size=1, max_size=6)
JSON = st.recursive(st.booleans() | st.integers(-9, 9) | WORDS, lambda inner: st.dictionaries(WORDS, inner, max_size=2))


@pytest.fixture(scope="module")
def document(tiny_artifact: Path) -> dict[str, Any]:
    return json.loads((tiny_artifact / "manifest.json").read_text())


def test_round_trip_keeps_every_field(document: dict[str, Any]):
    assert json.loads(Manifest.from_json(json.dumps(document)).to_json()) == document


def test_tasks_come_back_as_the_records_of_the_table(document: dict[str, Any]):
    assert Manifest.from_json(json.dumps(document)).task_table() == TASKS


@settings(max_examples=40, deadline=None)
@given(extra=st.dictionaries(WORDS.map("x_".__add__), JSON, max_size=3), where=st.sampled_from(["top", "task", "file"]))
def test_unknown_fields_are_kept_at_every_level(document: dict[str, Any], extra: dict[str, Any], where: str):
    changed = json.loads(json.dumps(document))
    target = {"top": changed, "task": changed["tasks"][1], "file": changed["files"][0]}[where]
    target.update(extra)
    assert json.loads(Manifest.from_json(json.dumps(changed)).to_json()) == changed


@pytest.mark.parametrize("found", ["ptsa/2", None, 1])
def test_another_format_says_what_to_do(document: dict[str, Any], found: object):
    with pytest.raises(ManifestError, match=r"reads 'ptsa/1': install|reads 'ptsa/1'; install"):
        Manifest.from_json(json.dumps({**document, "format": found}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"ptsa/1"'])
def test_other_text_is_no_manifest(text: str):
    with pytest.raises(ManifestError, match="export"):
        Manifest.from_json(text)


def test_all_faults_are_named_at_once(document: dict[str, Any]):
    changed = {**document, "name": "no spaces please", "counts": {"frozen": -1}}
    del changed["backbone"]
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(json.dumps(changed))
    for part in ("name", "counts.frozen", "counts.trainable", "backbone"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tasks", 1, "unit"), None, "needs 'm'"),
        (("tasks", 1, "kind"), "furlongs", "tasks.1.kind"),
        (("tasks", 1, "name"), "segmentation", "repeat"),
        (("tasks", 0, "channels"), 7, "7 channels, 39 classes"),
        (("tasks", 0, "colors", 0), [0, 0, 256], "0 to 255"),
        (("tree", "tasks"), ["depth"], "must name each of"),
        (("tasks", 0, "name"), "planes", "must be the same"),
        (("tree", "stages", 0), [["depth"]], "stage 1"),
        (("files", 0, "path"), "../secret", "inside the folder"),
        (("files", 0, "path"), "/etc/passwd", "inside the folder"),
        (("files", 0, "path"), "C:\\model", "inside the folder"),
        (("files", 0, "sha256"), "short", "files.0.sha256"),
        (("files", 0, "height"), 99, "input.sizes"),
        (("input", "dtype"), "float32", "input.dtype"),
        (("input", "sizes"), "448", "input.sizes"),
        (("version",), 1, "version"),
    ],
)
def test_wrong_values_are_named(document: dict[str, Any], path: tuple[Any, ...], value: object, message: str):
    changed = json.loads(json.dumps(document))
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(json.dumps(changed))
