"""Who asks: the tenant and user that a stored response is kept for, and the credentials that forbid keeping one."""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import unquote_to_bytes

__all__ = [
    "CREDENTIAL_HEADERS",
    "CREDENTIAL_QUERY",
    "REWRITING",
    "Credentials",
    "Identity",
    "identified",
    "parameter_names",
]

CREDENTIAL_HEADERS: frozenset[bytes] = frozenset(
    {b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key", b"x-auth-token"}
)
"""Request headers that make a request somebody's, lower case."""

CREDENTIAL_QUERY: frozenset[bytes] = frozenset({b"access_token", b"api_key", b"apikey", b"token", b"key", b"sig"})
"""Query parameter names that do the same."""


REWRITING: Final = frozenset(
    {
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-host",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
"""Request fields that many apps and frameworks take for a part of the URL or for the method, and that any client can
send. What was answered to one of them is kept from requests without it, or with another value, whatever Vary says."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, as the application resolved it.

    tenant: the customer whose data it is; never empty.
    user: the person or service within the tenant, or None where only the tenant is known.
    grants: a hash (or any stable text) of the roles and permissions that an answer depends on. It is part of every
        key that is not public, so that a hit cannot skip a permission check that a miss would have made.

    Raises:
        ValueError: if `tenant` or `user` is the empty string. An empty name is a missing one, not a tenant.
        TypeError: if one of them is no text. An object's text may hold its address, which another tenant's object can
            have a moment later.
    """

    tenant: str
    user: str | None = None
    grants: str = ""

    def __post_init__(self) -> None:
        values: tuple[object, ...] = (self.tenant, "" if self.user is None else self.user, self.grants)
        for value in values:
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"Identity: {type(value).__name__} is no text; give its id as str ({self!r})")
        if not self.tenant:
            raise ValueError("Identity.tenant: '' is empty; return None from identify() when there is no tenant")
        if self.user == "":
            raise ValueError("Identity.user: '' is empty; pass None when only the tenant is known")


def identified(found: object) -> Identity:
    """What `identify` has found, if that is an identity.

    Raises:
        TypeError: if it is not. A coroutine is ended, for nobody will await it.
    """
    if isinstance(found, Identity):
        return found
    kind = type(found).__name__
    if isinstance(found, Coroutine):
        cast(Coroutine[object, object, object], found).close()
    raise TypeError(f"identify() gave a {kind}; it is to give an Identity or None, and not to be async")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What marks a request as carrying a credential (P2): header names, query names, a client certificate.

    Names are compared without case for headers, exactly for query parameters. Extend the defaults with `extended`.
    """

    headers: frozenset[bytes] = field(default=CREDENTIAL_HEADERS)
    query: frozenset[bytes] = field(default=CREDENTIAL_QUERY)

    def extended(self, *, headers: Iterable[str] = (), query: Iterable[str] = ()) -> "Credentials":
        """A copy that also knows these names."""
        return Credentials(
            headers=self.headers | {name.lower().encode("latin-1") for name in headers},
            query=self.query | {name.encode("latin-1") for name in query},
        )

    def present(self, headers: Iterable[tuple[bytes, bytes]], query: bytes, *, client_certificate: bool) -> bool:
        """Whether a request with these headers and this raw query string carries a credential."""
        if client_certificate:
            return True
        known = self.headers
        for name, _ in headers:
            if name in known:
                return True
        if query:
            for part in query.replace(b";", b"&").split(b"&"):
                if not self.query.isdisjoint(parameter_names(part)):
                    return True
        return False


def parameter_names(part: bytes) -> tuple[bytes, ...]:
    """The name in `name=value` of a query string: as it was sent, and as an app reads it if that is different."""
    name = part.partition(b"=")[0]
    if b"%" not in name and b"+" not in name:
        return (name,)
    return (name, unquote_to_bytes(name.replace(b"+", b" ")))
