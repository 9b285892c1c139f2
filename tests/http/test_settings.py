"""Settings: read from PTSA_* alone, every fault named with what is allowed."""

import pytest

from ptsa_serve.errors import SettingsError
from ptsa_serve.settings import Settings


def test_defaults_are_those_of_the_contract() -> None:
    settings = Settings.load({})
    assert (settings.max_bytes, settings.max_pixels) == (20 * 1024 * 1024, 40_000_000)
    assert (settings.min_side, settings.max_side) == (16, 16_384)


def test_values_come_from_the_environment_given() -> None:
    assert Settings.load({"PTSA_QUEUE": "7", "HOME": "x"}).queue == 7


def test_empty_value_means_default() -> None:
    assert Settings.load({"PTSA_QUEUE": ""}).queue == 64


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PTSA_QUEUE", "0", "from 1 to 100000"),
        ("PTSA_QUEUE", "many", "'many'"),
        ("PTSA_MAX_BATCH", "65", "from 1 to 64"),
        ("PTSA_DRAIN_SECONDS", "-1", "a number from 0"),
        ("PTSA_ENGINE", "abacus", "onnxruntime"),
        ("PTSA_PREFER", "small", "use one of: speed, memory (what counts more"),
        ("PTSA_WARM", "none", "use one of: all, first (the model's sizes"),
        ("PTSA_PRECISION", "fp8", "use one of: fp32, fp16, bf16, int8 ("),
        ("PTSA_API_KEY", "short", "at least 8"),
        ("PTSA_MIN_SIDE", "4000000", "from 1 to 4096"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: value})
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_unknown_variable_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(SettingsError, match="PTSA_QEUE is not a setting; did you mean PTSA_QUEUE"):
        Settings.load({"PTSA_QEUE": "1"})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"PTSA_QUEUE": "x", "PTSA_THREADS": "-1", "PTSA_NOPE": "1"})
    assert all(name in str(caught.value) for name in ("PTSA_QUEUE", "PTSA_THREADS", "PTSA_NOPE"))


def test_contradicting_sides_are_refused() -> None:
    with pytest.raises(SettingsError, match="above PTSA_MAX_SIDE"):
        Settings.load({"PTSA_MIN_SIDE": "64", "PTSA_MAX_SIDE": "32"})


def test_key_is_never_shown() -> None:
    settings = Settings.load({"PTSA_API_KEY": "very-secret-key"})
    assert settings.describe()["PTSA_API_KEY"] == "set"
    assert "very-secret-key" not in f"{settings.describe()} {settings!r}"


def test_short_key_is_not_shown_in_the_error() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"PTSA_API_KEY": "s3cr3t"})
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("key", ["very-secret-key\n", "\r\n very-secret-key \t"])
def test_white_space_around_a_key_is_not_of_it(key: str) -> None:
    secret = Settings.load({"PTSA_API_KEY": key}).api_key
    assert secret is not None
    assert secret.get_secret_value() == "very-secret-key"


@pytest.mark.parametrize(
    "key", ["schlüssel-für-alle", "two\nlines-of-key", "tab\tin-the-key", "\ufeffvery-secret", "\n"]
)
def test_key_that_no_header_can_carry_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(SettingsError, match=r"PTSA_API_KEY .* printable ASCII"):
        Settings.load({"PTSA_API_KEY": key})


SERVICE_LINKS = {
    # Kubernetes, for Services named ptsa, ptsa-serve and ptsa-queue.
    "PTSA_SERVICE_HOST": "10.0.171.239",
    "PTSA_SERVICE_PORT": "3000",
    "PTSA_SERVICE_PORT_HTTP": "3000",
    "PTSA_PORT": "tcp://10.0.171.239:3000",
    "PTSA_PORT_3000_TCP": "tcp://10.0.171.239:3000",
    "PTSA_PORT_3000_TCP_PROTO": "tcp",
    "PTSA_PORT_3000_TCP_PORT": "3000",
    "PTSA_PORT_3000_TCP_ADDR": "10.0.171.239",
    "PTSA_SERVE_SERVICE_HOST": "fd00::1",
    "PTSA_SERVE_PORT": "tcp://[fd00::1]:3000",
    "PTSA_QUEUE_PORT": "udp://10.0.171.239:53",
    "PTSA_QUEUE_PORT_53_UDP_ADDR": "10.0.171.239",
    # Docker, for a linked container.
    "PTSA_NAME": "/web/ptsa",
    "PTSA_ENV_PATH": "/usr/bin:/bin",
}


def test_variables_that_orchestrators_make_for_a_service_of_our_name_are_no_settings() -> None:
    assert Settings.load({**SERVICE_LINKS, "PTSA_QUEUE": "7"}).queue == 7


@pytest.mark.parametrize("name", ["PTSA_PORT", "PTSA_SERVE_PORT", "PTSA_NAME", "PTSA_SERVICE", "PTSA_QUEUE_PORT_MAX"])
def test_a_setting_that_only_looks_like_a_service_link_is_still_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting"):
        Settings.load({name: "3000"})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load({}).queue = 3
