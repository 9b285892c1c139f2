"""Query parameters, Accept and deadlines become one record, or an error that names the fault."""

import pytest
from starlette.datastructures import QueryParams

from ptsa_serve.errors import BadParameter, NotAcceptable
from ptsa_serve.http.negotiate import FORMATS, Ask, Draw, deadline_ms, parse_ask, parse_draw, preferred

TASKS = ("segmentation", "depth", "normals")


def ask(query: str = "", accept: str = "*/*") -> Ask:
    return parse_ask(QueryParams(query), accept, TASKS)


def draw(query: str = "", accept: str = "") -> Draw:
    return parse_draw(QueryParams(query), accept, "depth")


def test_default_is_a_zip_of_all_tasks_at_the_photos_size() -> None:
    assert ask() == Ask(TASKS, "zip", "photo", compress=False, dtype="float32")
    assert draw() == Draw("depth", "raw", "photo", 0.6)


def test_tasks_come_in_the_models_order() -> None:
    assert ask("tasks=normals,segmentation").tasks == ("segmentation", "normals")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("tasks=dept", "tasks"),
        ("tasks=", "tasks"),
        ("tasks=depth,", "tasks"),
        ("format=bmp", "format"),
        ("format=ZIP", "format"),
        ("size=huge", "size"),
        ("format=npz&compress=yes", "compress"),
        ("format=npz&dtype=float64", "dtype"),
        ("compress=1", "compress"),
        ("format=zip&dtype=float16", "dtype"),
        ("formt=zip", "formt"),
        ("size=photo&size=model", "size"),
        ("render=color", "render"),
    ],
)
def test_unknown_parameter_or_value_is_refused_by_name(query: str, parameter: str) -> None:
    with pytest.raises(BadParameter) as caught:
        ask(query)
    assert caught.value.parameter == parameter
    assert parameter in caught.value.detail


def test_error_lists_what_is_allowed() -> None:
    with pytest.raises(BadParameter) as caught:
        ask("format=bmp")
    assert caught.value.allowed == ("zip", "npz", "json")


@pytest.mark.parametrize("query", ["opacity=0.5", "render=overlay&opacity=2", "render=overlay&opacity=nan",
                                   "render=overlay&opacity=x", "render=grey", "format=zip"])  # fmt: skip
def test_wrong_drawing_parameters_are_refused(query: str) -> None:
    with pytest.raises(BadParameter):
        draw(query)


def test_opacity_is_read() -> None:
    assert draw("render=overlay&opacity=0.25").opacity == 0.25


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "zip"),
        ("*/*", "zip"),
        ("application/x-npz", "npz"),
        ("application/json", "json"),
        ("application/json;q=0.5, application/x-npz;q=0.9", "npz"),
        ("application/*", "zip"),
        ("application/zip;q=0, */*", "npz"),
        ("text/html, */*;q=0.1", "zip"),
        ("APPLICATION/JSON ; Q=1", "json"),
        ("application/json, application/*;q=0.2", "json"),
    ],
)
def test_accept_chooses_by_quality_and_precision(accept: str, expected: str) -> None:
    assert preferred(accept, FORMATS) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png", "*/*;q=0", "application/zip;q=0"])
def test_accept_without_a_type_of_ours_is_refused_with_those_there_are(accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        preferred(accept, FORMATS)
    assert caught.value.allowed == tuple(FORMATS.values())


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "zip"),
        ("application/json;q=.9, application/zip;q=.2", "json"),
        ("application/json;q=high", "json"),
        ("application/json;q=", "json"),
        ("application/json;q=nan", "json"),
        ("application/json;q=7, application/zip;q=0.5", "json"),
        ("application/json;q=0.12345", "json"),
        ('application/json;q="0.5"', "json"),
        ('text/html;title="a, b;q=0", application/json', "json"),
        ('application/json;title="open', "json"),
        ("zip", "zip"),
        (",,;q=1", "zip"),
    ],
)
def test_accept_is_read_as_its_sender_meant_it(accept: str, expected: str) -> None:
    assert preferred(accept, FORMATS) == expected


def test_query_wins_over_accept() -> None:
    assert ask("format=npz", "text/html").format == "npz"


def test_drawing_needs_png_to_be_accepted() -> None:
    assert draw(accept="image/*").render == "raw"
    with pytest.raises(NotAcceptable):
        draw(accept="image/webp")


def test_deadline_is_capped_by_the_server() -> None:
    assert deadline_ms(None, 500) == 500
    assert deadline_ms("250", 500) == 250
    assert deadline_ms("99999", 500) == 500


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "soon", "1e3", "٣", "9" * 20])
def test_deadline_that_is_no_whole_number_is_refused(value: str) -> None:
    with pytest.raises(BadParameter) as caught:
        deadline_ms(value, 500)
    assert caught.value.parameter == "X-Deadline-Ms"
