"""What `ptsa serve` hands to BentoML: an address that it takes, folders that can be written, no code of strangers."""

import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from ptsa_serve import launch
from ptsa_serve.errors import SettingsError
from ptsa_serve.launch import command, environment, find_address
from ptsa_serve.settings import Settings


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def made(**environ: str) -> dict[str, str]:
    return environment(environ, Settings.load(environ))


@pytest.mark.parametrize(
    ("host", "address"), [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0")]
)
def test_names_become_addresses(port: int, host: str, address: str):
    assert find_address(host, port) == address


def test_ipv6_is_taken(port: int):
    try:
        socket.create_server(("::1", port), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert find_address("::1", port) == "::1"


@pytest.mark.parametrize(
    "host", ["", " ", "http://localhost", "localhost:80", "[::1]", "x" * 300, "a\0b", "a..b", "192.0.2.1"]
)
def test_host_that_is_none_is_told_with_what_to_use(port: int, host: str):
    with pytest.raises(SettingsError, match=r"use 127\.0\.0\.1 for this machine alone"):
        find_address(host, port)


def test_taken_port_is_told_for_a_name_too():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError, match="another with --port"):
        find_address("localhost", taken.getsockname()[1])


def test_port_of_the_administrator_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(launch.socket, "socket", type("Refusing", (socket.socket,), {"bind": refuse}))
    with pytest.raises(SettingsError, match="use one above 1023"):
        find_address("127.0.0.1", 80)


def test_machine_without_a_family_is_told(monkeypatch: pytest.MonkeyPatch, port: int):
    def refuse(*arguments: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(launch.socket, "socket", refuse)
    with pytest.raises(SettingsError, match="Address family not supported"):
        find_address("127.0.0.1", port)


def test_working_folder_holds_nothing_that_could_be_imported(port: int):
    arguments = command("a:b", "127.0.0.1", port)
    folder = Path(arguments[arguments.index("--working-dir") + 1])
    assert folder.is_dir()
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".pyc", ".so", ".pth")]


def test_home_that_can_be_written_is_kept(tmp_path: Path):
    assert made(BENTOML_HOME=str(tmp_path / "kept"))["BENTOML_HOME"] == str(tmp_path / "kept")


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null", "file", "half"])
def test_home_that_cannot_be_written_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "models").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = Path(made(BENTOML_HOME=str(tmp_path / home))["BENTOML_HOME"])
    assert found.parent == tmp_path
    assert found.name.startswith("ptsa-serve-")


def test_user_without_a_home_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Path(made()["BENTOML_HOME"]).parent == tmp_path


def test_nowhere_to_write_is_told(monkeypatch: pytest.MonkeyPatch):
    def none() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SettingsError, match="TMPDIR"):
        made()


def test_no_path_depends_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = made(PTSA_MODEL="m", PTSA_DRAIN_FILE="d", BENTOML_HOME="b", BENTOML_CONFIG="c", PYTHONPATH="p::q")
    for name, value in {"PTSA_MODEL": "m", "PTSA_DRAIN_FILE": "d", "BENTOML_HOME": "b", "BENTOML_CONFIG": "c"}.items():
        assert found[name] == str(tmp_path / value)
    assert found["PYTHONPATH"].split(os.pathsep)[-2:] == [str(tmp_path / "p"), str(tmp_path / "q")]


def test_server_runs_the_code_that_started_it(monkeypatch: pytest.MonkeyPatch):
    home = str(Path(launch.__file__).parents[1])
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    assert made()["PYTHONPATH"] == home
    monkeypatch.setattr(sys, "path", [home])
    assert made()["PYTHONPATH"] == ""
