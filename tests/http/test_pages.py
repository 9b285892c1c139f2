"""The page and what belongs to it: whole, from this server alone, and wherever a proxy puts it."""

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest


def test_root_leads_browsers_to_the_page(server) -> None:
    browser = server.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    # Relative: below a prefix of a proxy's, /ui would be somebody else's.
    assert (browser.status_code, browser.headers["Location"]) == (302, "ui")
    assert server.get("/").json()["page"] == "/ui"


@pytest.mark.parametrize("path", ["/ui", "/ui/"])
def test_page_comes_whole_from_this_server_with_a_policy(server, path: str) -> None:
    page = server.get(path)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|<style|style=|onclick", page.text)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    base = urljoin(path, addresses.pop(0))
    assert base == "/ui/"
    assert len(addresses) >= 5
    for address in addresses:
        # The schema is BentoML's, which is not here.
        assert not address.startswith("/")
        assert address == "../docs.json" or server.get(urljoin(base, address)).status_code == 200, address


def test_scripts_and_pages_name_nothing_by_an_absolute_path(server) -> None:
    for path in ("app.js", "figures.js", "legends.js", "colors.js", "npz.js", "style.css"):
        text = server.get(f"/ui/{path}").text
        assert not re.search(r"""["'`(]/(?:ui|v1|docs|problems)""", text), path
    problem = server.get("/problems/bad-image").text
    assert urljoin("/problems/bad-image", re.findall(r'href="([^"]+)"', problem)[0]) == "/ui/style.css"
    assert not re.search(r'href="/', problem)


def test_page_serves_no_other_file(server) -> None:
    for path in (
        "/ui/../app.py",
        "/ui/%2e%2e/app.py",
        "/ui/nothing.js",
        "/ui/samples/../index.html",
        "/ui//etc/passwd",
    ):
        assert server.get(path).status_code == 404, path


def test_samples_list_what_is_there(server) -> None:
    import ptsa_serve

    folder = Path(ptsa_serve.__file__).parent / "ui" / "samples"
    listed = server.get("/ui/samples.json").json()
    assert listed == sorted(path.name for path in folder.glob("*.jpg"))
    for name in listed:
        assert server.get(f"/ui/samples/{name}").headers["Content-Type"] == "image/jpeg"
