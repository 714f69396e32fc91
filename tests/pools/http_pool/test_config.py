"""Configurations: what is refused, what makes two equal, and what is shown."""

import dataclasses
import pickle

import pytest
from pydantic import SecretStr

from app.pools.errors import ConfigError, InvalidURL
from app.pools.http_pool import HTTPConfig


@pytest.mark.parametrize(
    "base_url",
    [
        "api.example.com", "ftp://api.example.com", "https://", "", "https://host:port", "//host",
        "https://host/v1?key=canary", "https://host/#canary", "https://alice:canary@host", "https://canary@host",
        "https://host/a/../b", "https://host/%2e%2e/b",
    ],
)  # fmt: skip
def test_a_base_url_that_is_not_plain_is_refused(base_url: str) -> None:
    """HTTPConfig refuses a base URL without scheme or host, or with credentials, query, fragment or '..'."""
    with pytest.raises(InvalidURL) as caught:
        HTTPConfig(base_url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"timeout": 0}, {"timeout": -1}, {"max_retries": -1}, {"connect_timeout": 0}, {"max_connections": 0},
        {"rate_limit": 0}, {"max_concurrency": 0}, {"rate_burst": 0}, {"max_response_size": 0}, {"auth": 7},
        {"auth": ("a", "b", "c")}, {"proxy": "socks5://canary@proxy"},
        {"block_private": True, "proxy": "http://proxy"}, {"timeout": None}, {"timeout": "30"},
        {"timeout": float("nan")}, {"max_retries": True}, {"rate_limit": "1"}, {"max_connections": 2j},
        {"verify": "false"}, {"verify": 0}, {"block_private": "no"}, {"trust_env": None},
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(values: dict[str, object]) -> None:
    """HTTPConfig refuses a value out of range, with an error that names the field."""
    with pytest.raises(ConfigError, match=next(iter(values))) as caught:
        HTTPConfig("https://host", **values)  # type: ignore[arg-type]
    assert "canary" not in str(caught.value)


def test_configurations_are_equal_if_every_field_is() -> None:
    """Two configurations are one key exactly if they agree in every field."""

    def token() -> str:
        return "t"

    base = {"base_url": "https://host", "headers": {"A": "1"}, "auth": "token"}
    others: list[dict[str, object]] = [
        {"base_url": "https://host/v1"}, {"timeout": 1.0}, {"max_retries": 1}, {"headers": {"A": "2"}},
        {"auth": "other"}, {"auth": token}, {"auth": ("a", "b")}, {"auth": ("a", "c")}, {"verify": False}, {"ca": "x"},
        {"cert": "x"}, {"cert": ("x", "y")}, {"proxy": "http://p"}, {"proxy": "http://a:b@p"}, {"trust_env": True},
        {"max_connections": 3}, {"block_private": True}, {"rate_limit": 1.0}, {"max_concurrency": 1},
    ]  # fmt: skip
    configs = [HTTPConfig(**base), *(HTTPConfig(**{**base, **other}) for other in others)]  # type: ignore[arg-type]
    assert len(set(configs)) == len(configs)
    assert HTTPConfig(**base) == HTTPConfig(**base)  # type: ignore[arg-type]
    assert hash(HTTPConfig(**base)) == hash(HTTPConfig(**base))  # type: ignore[arg-type]


def test_a_configuration_does_not_change() -> None:
    """A configuration is frozen, its headers too, and takes no part in later changes of what it was made from."""
    headers = {"A": "1"}
    config = HTTPConfig("https://host", headers=headers)
    headers["A"] = "2"
    assert config.headers == {"A": "1"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.timeout = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.headers["A"] = "3"  # type: ignore[index]


def test_the_representation_shows_what_was_set_and_no_secret() -> None:
    """repr names what differs from the defaults, and hides credentials, every header's value and the proxy."""
    config = HTTPConfig(
        "https://host/v1", timeout=5.0, headers={"X-Team": "canary"}, auth=("a", "canary"), proxy="http://u:canary@p"
    )
    assert repr(config) == (
        "HTTPConfig(base_url='https://host/v1', timeout=5.0, headers={'X-Team': '**********'}, "
        "auth='**********', proxy='**********')"
    )
    assert "canary" not in repr(HTTPConfig("https://host", auth="canary"))
    assert "canary" not in repr(HTTPConfig("https://host", auth=SecretStr("canary")))


def test_a_pickled_config_is_the_same_key() -> None:
    """What is unpickled is equal, hashes alike, and has the same headers and credentials."""
    config = HTTPConfig("https://host/v1", headers={"X-Team": "a"}, auth=("ada", "secret"), timeout=3, ca="/ca.pem")
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert hash(copy) == hash(config)
    assert copy.base_headers == config.base_headers
    with pytest.raises(TypeError):
        copy.headers["X-Team"] = "b"
