"""What may stand as the address of a Redis, taken apart without asking anybody.

    redis://[user:password@]host:port/database          rediss://…                  one server; over TLS
    unix://[user:password@]/path?db=0                                               one server on this machine
    redis+sentinel://[user:password@]host:port,host:port/service/database           the master that the Sentinels name
    redis+cluster://[user:password@]host:port,host:port                             a cluster, by some of its nodes

`rediss+sentinel://` and `rediss+cluster://` are the last two over TLS. User and password are those of the servers; the
Sentinels' own are the options `sentinel_username` and `sentinel_password`. Further options after `?` are those of
redis-py's connections, such as `ssl_ca_certs=/path`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

__all__ = ["Address"]

Kind = Literal["one", "sentinel", "cluster"]

_SCHEMES: Final[dict[str, tuple[Kind, str]]] = {
    "redis": ("one", "redis"),
    "rediss": ("one", "rediss"),
    "unix": ("one", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_PORTS: Final = {"one": 6379, "cluster": 6379, "sentinel": 26379}
_SENTINELS_OWN: Final = {"sentinel_username": "username", "sentinel_password": "password"}

IGNORED: Final = frozenset(
    {
        "socket_timeout",
        "socket_connect_timeout",
        "timeout",
        "max_connections",
        "retry_on_timeout",
        "health_check_interval",
        "decode_responses",
        "encoding",
        "encoding_errors",
        "legacy_responses",
    }
)
"""Options about waiting, pools and text in addresses that were written for other clients: here they are our affair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of a Redis, by its parts.

    url: what redis-py's `from_url` takes: the server itself, or the first node with everybody's options.
    nodes: host and port of each server, Sentinel or node that is named; none for a unix socket.
    service: what the Sentinels call the master.
    sentinel_login: username and password for the Sentinels.
    """

    kind: Kind
    url: str
    nodes: Sequence[tuple[str, int]] = ()
    service: str = ""
    sentinel_login: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, text: str) -> "Address":
        """The address in this text.

        Raises:
            ValueError: if it is none; its text says why, and has no password in it.
        """
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise ValueError("it cannot be taken apart") from error
        if parts.scheme not in _SCHEMES:
            raise ValueError(f"{parts.scheme or 'nothing'}:// is not one of {', '.join(f'{s}://' for s in _SCHEMES)}")
        kind, scheme = _SCHEMES[parts.scheme]
        options = {name: value for name, value in parse_qsl(parts.query) if name not in IGNORED}
        login = {_SENTINELS_OWN[name]: options.pop(name) for name in _SENTINELS_OWN if name in options}
        if login and kind != "sentinel":
            raise ValueError("sentinel_username and sentinel_password are for redis+sentinel://")
        if scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError("it names no path")
            return cls(kind=kind, url=_joined(parts, scheme, parts.netloc, parts.path, options))
        before, at, hosts = parts.netloc.rpartition("@")
        nodes = [_node(one, _PORTS[kind]) for one in hosts.split(",")]
        if kind == "one" and len(nodes) > 1:
            raise ValueError("several hosts are for redis+sentinel:// and redis+cluster://")
        service, path = "", parts.path
        if kind == "sentinel":
            service, _, database = path.strip("/").partition("/")
            service, path = unquote(service), f"/{database}"
            if not service:
                raise ValueError("it names no service: redis+sentinel://host:26379/service")
        _check_database(kind, path.strip("/"), options)
        host, port = nodes[0]
        first = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        url = _joined(parts, scheme, f"{before}{at}{first}", path, options)
        return cls(kind=kind, url=url, nodes=tuple(nodes), service=service, sentinel_login=login)


def _node(text: str, port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\[\]:]*)(?::([0-9]{1,5}))?", text)
    if found is None or int(found[2] or port) > 65535:
        raise ValueError("what stands for host and port is none")  # not shown: it may be part of a password
    return found[1].strip("[]") or "localhost", int(found[2] or port)


def _check_database(kind: Kind, path: str, options: dict[str, str]) -> None:
    database = options.get("db", path)
    if database and not database.isdecimal():
        raise ValueError("what stands for the database is none: they have numbers")
    if kind == "cluster" and database.strip("0"):
        raise ValueError("a cluster has one database, 0")


def _joined(parts: SplitResult, scheme: str, netloc: str, path: str, options: dict[str, str]) -> str:
    # Not by urlunsplit: it leaves the slashes of unix:///path out.
    return f"{scheme}://{netloc}{path}{'?' if options else ''}{urlencode(options)}"
