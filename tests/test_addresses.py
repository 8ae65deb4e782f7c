"""Addresses of a Redis, taken apart; what cannot be one is told without its password."""

import re

import pytest

from tidegate.addresses import Address
from tidegate.errors import ConfigError
from tidegate.middleware.stores.redis import RedisStore
from tidegate.settings import Settings


@pytest.mark.parametrize(
    ("text", "kind", "url", "nodes", "service"),
    [
        ("redis://host", "one", "redis://host:6379", [("host", 6379)], ""),
        ("redis://:p%2Fw@host:1/2?socket_timeout=5", "one", "redis://:p%2Fw@host:1/2", [("host", 1)], ""),
        ("rediss://u:p@[::1]:7/0?ssl_ca_certs=/a", "one", "rediss://u:p@[::1]:7/0?ssl_ca_certs=%2Fa", [("::1", 7)], ""),
        ("unix:///run/r.sock?db=3", "one", "unix:///run/r.sock?db=3", [], ""),
        ("redis+sentinel://a,b:1/main", "sentinel", "redis://a:26379/", [("a", 26379), ("b", 1)], "main"),
        ("rediss+sentinel://u:p@a:2/my%20own/4", "sentinel", "rediss://u:p@a:2/4", [("a", 2)], "my own"),
        ("redis+cluster://u:p@a:1,b,[::2]:3", "cluster", "redis://u:p@a:1", [("a", 1), ("b", 6379), ("::2", 3)], ""),
    ],
)
def test_an_address_is_taken_apart(text: str, kind: str, url: str, nodes: list[tuple[str, int]], service: str) -> None:
    address = Address.of(text)
    assert (address.kind, address.url, list(address.nodes), address.service) == (kind, url, nodes, service)


def test_the_sentinels_have_a_login_of_their_own() -> None:
    address = Address.of("redis+sentinel://u:p@a/main/0?sentinel_username=watch&sentinel_password=s%40&ssl=x")
    assert address.sentinel_login == {"username": "watch", "password": "s@"}
    assert address.url == "redis://u:p@a:26379/0?ssl=x"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://host", "http:// is not one of redis://, rediss://"),
        ("host:6379", "is not one of"),
        ("redis://:secret/word@host:6379", "stands for host and port is none"),
        ("redis://:secret@host:99999", "stands for host and port is none"),
        ("redis://:secret@a,b", "several hosts are for"),
        ("redis://:secret@[::1", "cannot be taken apart"),
        ("unix://", "names no path"),
        ("redis+sentinel://:secret@a:1", "names no service"),
        ("redis+sentinel://:secret@a:1/main/x", "stands for the database is none"),
        ("redis+cluster://:secret@a:1/1", "has one database"),
        ("redis://a?sentinel_password=***", "are for redis+sentinel://"),
    ],
)
def test_what_is_no_address_is_told_without_its_password(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        Address.of(text)
    assert "secret@" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"store\.url.*redis\+cluster://") as refused:
        Settings.of({"store": {"url": text}})
    assert "secret@" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be used") as refused:
        RedisStore(text)
    assert "secret" not in str(refused.value).replace("sentinel_password", "")


def test_an_option_that_no_connection_has_is_named() -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        RedisStore("redis://host?colour=red")
    with pytest.raises(ConfigError, match="Requirements Flag: sometimes"):
        RedisStore("rediss://host?ssl_cert_reqs=sometimes")
