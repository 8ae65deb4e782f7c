"""What each setting may be: a test, what is wrong where it fails, and what to write instead."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from tidegate.addresses import Address
from tidegate.middleware.core.policy import Authorization, Share
from tidegate.vocabulary import Unit

__all__ = ["RULES", "FlagProviderName", "items_of"]

FlagProviderName = Literal["none", "local", "unleash"]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _url(*schemes: str) -> Callable[[Any], bool]:
    def valid(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        try:
            parts = urlsplit(value)
            _ = parts.port  # raises too
        except ValueError:
            return False
        return parts.scheme in schemes and bool(parts.netloc or parts.path)

    return valid


def _listen(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    return bool(host) and port.isdecimal() and len(port) <= 5 and int(port) < 65536


def items_of(value: Any) -> list[Any] | None:
    """The items of a list or tuple, or None."""
    return [*value] if isinstance(value, list | tuple) else None  # pyright: ignore[reportUnknownVariableType]


def _edges(value: Any) -> bool:
    edges = items_of(value)
    if not edges or not all(_number(1, 100, whole=True)(edge) for edge in edges):
        return False
    return edges == sorted(set(edges)) and edges[-1] == 100


def _urls(value: Any) -> bool:
    urls = items_of(value)
    return urls is not None and all(_HTTP(url) for url in urls)


def _texts(value: Any) -> bool:
    texts = items_of(value)
    return texts is not None and all(_text(text) for text in texts)


def _number(low: float, high: float = float("inf"), *, whole: bool = False) -> Callable[[Any], bool]:
    kinds = int if whole else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _stops(value: Any) -> bool:
    return _address(value) if isinstance(value, str) and "://" in value else _text(value)


def _namespace(value: Any) -> bool:
    return _text(value) and not any(letter in value for letter in ":{} \n")


_HTTP = _url("http", "https")


def _address(value: Any) -> bool:
    try:
        Address.of(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


RULES: Final[Mapping[str, tuple[Callable[[Any], bool], str, str]]] = {
    "share": (lambda v: v in get_args(Share), "is not a share", "use public, tenant or user"),
    "authorization": (lambda v: v in get_args(Authorization), "is not a rule", "use strict or rfc9111"),
    "version": (_text, "is not a name", 'give text such as "v1"'),
    "default_ttl": (_number(0, 31_536_000), "is not a number of seconds", "give 0 to 31536000"),
    "max_body": (_number(0, whole=True), "is not a number of bytes", "give a whole number >= 0"),
    "shadow_bodies": (_number(0, 16_384, whole=True), "is not a number of bytes", "give 0 to 16384"),
    "show_key": (lambda v: isinstance(v, bool), "is not true or false", "write true or false"),
    "url": (
        _address,
        "is not a Redis URL",
        "write redis://host:6379/0, rediss://, unix:///path, redis+sentinel://host:26379/service or"
        " redis+cluster://host:6379",
    ),
    "enabled": (lambda v: isinstance(v, bool), "is not true or false", "write true or false"),
    "keys": (_texts, "is not a list of keys", 'write ["tgk1_..."], as tidegate keys new --print gives it'),
    "key_file": (_text, "is not a path", "give the path of the key file; tidegate keys new makes one"),
    "max_bytes": (_number(1024, whole=True), "is not a size", "give a whole number of bytes >= 1024"),
    "budget": (_number(0.001, 10), "is not a time budget", "give seconds from 0.001 to 10 (0.05 is usual)"),
    "provider": (lambda v: v in get_args(FlagProviderName), "is not a flag provider", "use none, local or unleash"),
    "file": (_text, "is not a path", "give the path of the flag file"),
    "unleash_url": (_HTTP, "is not an HTTP URL", "write http://host:4242/api"),
    "unleash_token": (lambda v: isinstance(v, str), "is not text", "give a backend token of this environment"),
    "app_name": (_text, "is not a name", "give the name under which Unleash shows this app"),
    "environment": (_text, "is not a name", 'give an Unleash environment such as "production"'),
    "max_staleness": (_number(0.1, 86_400), "is not an age", "give seconds from 0.1 to 86400 (60 is usual)"),
    "poll_interval": (_number(0.1, 60), "is not an interval", "give seconds from 0.1 to 60"),
    "stops": (_stops, "is no place for stop records", "give a file's path, or redis://host:6379/0"),
    "stops_namespace": (_namespace, "is not a name", "use letters, digits, - and _"),
    "unit": (lambda v: v in get_args(Unit), "is not a unit", "use tenant, user or session"),
    "bands": (_edges, "is not a list of band edges", "give rising whole percentages that end with 100"),
    "metrics_dir": (_text, "is not a path", "give a folder that the workers may write"),
    "debug_headers": (lambda v: isinstance(v, bool), "is not true or false", "write true or false"),
    "journal": (_text, "is not a path", "give the path of the journal file"),
    "admin_token": (lambda v: isinstance(v, str), "is not text", "give an Unleash admin or personal access token"),
    "prometheus_url": (_HTTP, "is not an HTTP URL", "write http://host:9090"),
    "metrics_urls": (_urls, "is not a list of HTTP URLs", 'write ["http://host:8000/metrics"]'),
    "listen": (_listen, "is not an address", 'write "127.0.0.1:9000"'),
    "alert_token": (lambda v: isinstance(v, str), "is not text", "give a secret text"),
}
