"""The errors of requests and the table of tasks: what the HTTP layer and the pages rely on."""

import pytest

from ptsa_serve.errors import (
    REQUEST_ERRORS,
    MethodNotAllowed,
    NotAcceptable,
    Overloaded,
    PTSAError,
    RequestError,
    UnknownTask,
)
from ptsa_serve.tasks import KINDS, TASKS

CODES = {
    400: {"bad-image", "missing-image", "bad-multipart"},
    401: {"unauthorized"},
    404: {"unknown-task", "unknown-model", "not-found"},
    405: {"method-not-allowed"},
    406: {"not-acceptable"},
    413: {"too-large"},
    415: {"unsupported-media-type"},
    422: {"bad-parameter"},
    429: {"too-many-requests"},
    500: {"internal"},
    503: {"overloaded", "not-ready", "shutting-down"},
    504: {"deadline-exceeded"},
}


def test_every_code_of_the_contract_has_its_status():
    found = {(error.status, code) for code, error in REQUEST_ERRORS.items()}
    assert found == {(status, code) for status, codes in CODES.items() for code in codes}
    assert all(code == error.code and error.title for code, error in REQUEST_ERRORS.items())


def test_every_request_error_is_in_the_table():
    def below(kind: type[RequestError]) -> set[type[RequestError]]:
        return {kind, *(found for child in kind.__subclasses__() for found in below(child))}

    public = {kind for kind in below(RequestError) if not kind.__name__.startswith("_")} - {RequestError}
    assert public == set(REQUEST_ERRORS.values())
    assert issubclass(RequestError, PTSAError)


@pytest.mark.parametrize(("seconds", "header"), [(0, "1"), (0.2, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: str):
    assert Overloaded("full", retry_after=seconds).headers == {"Retry-After": header}


def test_refusals_name_what_exists():
    assert MethodNotAllowed("PUT", {"POST", "GET"}).headers == {"Allow": "GET, POST"}
    assert "application/zip" in NotAcceptable("text/html", ["application/zip"]).detail
    error = UnknownTask("x" * 500, ["depth"], parameter="tasks")
    assert error.allowed == ("depth",)
    assert error.parameter == "tasks"
    assert len(error.detail) < 200


def test_tasks_are_whole_records():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.kind in KINDS
        assert len(task.classes) == len(task.colors) == (task.channels if task.kind == "classes" else 0)
    assert len(TASKS["segmentation"].classes) == 39


def test_class_colours_can_be_told_apart():
    colors = TASKS["segmentation"].colors
    assert len(set(colors)) == len(colors)
    distances = [
        sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        for i, one in enumerate(colors)
        for other in colors[:i]
    ]
    assert min(distances) > 24
