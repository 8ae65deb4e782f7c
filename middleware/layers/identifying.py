"""Who asks, out of what applications commonly know it by: Starlette's user, or header fields of a proxy.

Both give the same identity for the same names again: to make one costs more than to find a response.
"""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final, cast
from uuid import UUID

from tidegate.errors import Problems
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.policy import FIELD_NAME

__all__ = ["Identify", "starlette_user", "trusted_headers"]

Scope = MutableMapping[str, Any]

Identify = Callable[[Scope], Identity | None]
"""Says who asks, from the scope; None when nobody is known. Called once a request, below authentication."""


def starlette_user(scope: Scope) -> Identity | None:
    """Reads `scope["user"]` as Starlette's AuthenticationMiddleware leaves it.

    The user needs the attributes `tenant` and, for user shares, `username` or `identity`; `grants` is used if it is
    there.
    A user that is not authenticated, or names no tenant, is nobody.

    Raises:
        TypeError: if one of them is neither text nor a number nor a UUID (an ORM's object, say), nor, for `grants`, a
            collection of such. A resolver counts that and takes the user for nobody.
    """
    user = scope.get("user")
    if user is None:
        return None
    try:
        tenant = user.tenant if user.is_authenticated else None
    except AttributeError:
        return None
    if not tenant:
        return None
    name = getattr(user, "username", None)
    if name is None:
        try:
            name = user.identity
        except (AttributeError, NotImplementedError):  # Starlette's BaseUser raises the second
            name = None
    grants = getattr(user, "grants", "")
    # Only then what is equal has the same text, which is what an identity is made of.
    if not (type(tenant) is str and type(name) is str and type(grants) is str):
        return Identity(_named("tenant", tenant), _named("username", name) if name else None, _granted(grants))
    return _identities.get((tenant, name, grants)) or _identity(tenant, name, grants)


def _identity(tenant: str, user: str, grants: str) -> Identity:
    """Make an identity, and remember it. user: "" is none."""
    made = Identity(tenant, user or None, grants)
    if len(tenant) + len(user) + len(grants) <= _LONGEST:
        if len(_identities) >= _IDENTITIES:
            _identities.clear()
        _identities[tenant, user, grants] = made
    return made


_IDENTITIES: Final = 4096
"""Identities remembered by what names them, some 0.3 KiB each."""

_LONGEST: Final = 512
"""Characters or bytes of what names an identity that is remembered: a client may choose some of it."""

_identities: dict[tuple[str, str, str], Identity] = {}


def _named(attribute: str, value: object) -> str:
    if isinstance(value, str | int | UUID):
        return str(value)
    raise TypeError(f"user.{attribute}: {type(value).__name__} has no text of its own; give its id")


def _granted(grants: object) -> str:
    if grants is None:
        return ""
    if isinstance(grants, list | tuple | set | frozenset):
        members = [_named("grants", member) for member in cast(Iterable[object], grants)]
        return "".join(f"{len(member)}:{member}" for member in sorted(members))
    return _named("grants", grants)


def trusted_headers(*, tenant: str, user: str | None = None, grants: str | None = None) -> Identify:
    """Reads the identity from request headers.

    Only behind a proxy that authenticates and *overwrites* these headers: whoever can send them can be anybody.
    A header that is missing, empty or sent twice names nobody.

    Raises:
        ConfigError: for a name that no header can have.
    """
    problems = Problems("trusted_headers")
    for role, name in (("tenant", tenant), ("user", user), ("grants", grants)):
        if name is not None and not FIELD_NAME.match(name):
            problems.add(role, name, "is not a header field name", "give one field name without spaces")
    problems.raise_if_any()
    fields = [None if name is None else name.lower().encode("latin-1") for name in (tenant, user, grants)]
    return _by_fields(fields[0], fields[1], fields[2])


def _by_fields(tenant: bytes | None, user: bytes | None, grants: bytes | None) -> Identify:
    """As `trusted_headers`, from lower-case names. One name in two places stands in the last."""
    names = {name for name in (tenant, user, grants) if name is not None}
    known: dict[tuple[bytes | None, bytes | None, bytes | None], Identity] = {}

    def identify(scope: Scope) -> Identity | None:
        # Known by the values alone: what is looked for among thousands is found the sooner the less there is of it.
        its_tenant: bytes | None = None
        its_user: bytes | None = None
        its_grants: bytes | None = None
        before: bytes | None
        for name, value in scope["headers"]:
            if name in names:
                if name == grants:
                    before, its_grants = its_grants, value
                elif name == user:
                    before, its_user = its_user, value
                else:
                    before, its_tenant = its_tenant, value
                if before is not None:
                    return None
        sent = (its_tenant, its_user, its_grants)
        found = known.get(sent)
        if found is None:
            found = _named_by(*sent)
            if found is not None and sum([len(value) for value in sent if value is not None]) <= _LONGEST:
                if len(known) >= _IDENTITIES:
                    known.clear()
                known[sent] = found
        return found

    return identify


def _named_by(tenant: bytes | None, user: bytes | None, grants: bytes | None) -> Identity | None:
    """Whom the values of header fields name; None: a field that was not sent."""
    texts = ["" if value is None else value.strip(b" \t").decode("latin-1") for value in (tenant, user, grants)]
    return Identity(texts[0], texts[1] or None, texts[2]) if texts[0] else None
