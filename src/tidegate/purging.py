"""What code purges that changes data outside an HTTP request: some tags, or all of a tenant; and what it would take."""

from collections.abc import Sequence
from typing import Literal, overload

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import scope_of
from tidegate.middleware.core.records import aimed
from tidegate.middleware.stores.affected import Affected
from tidegate.middleware.stores.base import PUBLIC_SCOPE, WHOLE_SCOPE, Purge
from tidegate.middleware.stores.guard import GuardedStore

__all__ = ["Purging", "scope_of_tenant"]


class Purging:
    """Whoever has a store."""

    store: GuardedStore

    @overload
    async def purge(
        self,
        *tags: str,
        all_of: Sequence[str] = (),
        tenant: str | None = None,
        soft: bool = False,
        dry_run: Literal[False] = False,
    ) -> Purge: ...

    @overload
    async def purge(
        self,
        *tags: str,
        all_of: Sequence[str] = (),
        tenant: str | None = None,
        soft: bool = False,
        dry_run: Literal[True],
    ) -> Affected: ...

    async def purge(
        self,
        *tags: str,
        all_of: Sequence[str] = (),
        tenant: str | None = None,
        soft: bool = False,
        dry_run: bool = False,
    ) -> Purge | Affected:
        """Purge what carries any of these tags of a tenant, or public ones; for code that changes data outside an HTTP
        request.

        all_of: what carries all of these, up to 16; with tags, as well as what carries any of them.
        soft: what is purged becomes stale, to be served while the app is asked for a new response; else it is void.
        dry_run: change nothing; return what it would take.

        Raises:
            ValueError: if no tag is named, or an empty one, which would be everything.
            TypeError: if a tag is no text.
        """
        if WHOLE_SCOPE in tags or (WHOLE_SCOPE in all_of and not isinstance(all_of, str)):
            raise ValueError('purge: "" is no tag; give a name, or use purge_all for everything')
        targets = {scope_of_tenant(tenant): aimed(tags, all_of=all_of, soft=soft)}
        return await (self.store.affected(targets) if dry_run else self.store.purge(targets))

    @overload
    async def purge_all(
        self, tenant: str | None = None, *, soft: bool = False, dry_run: Literal[False] = False
    ) -> Purge: ...

    @overload
    async def purge_all(self, tenant: str | None = None, *, soft: bool = False, dry_run: Literal[True]) -> Affected: ...

    async def purge_all(
        self, tenant: str | None = None, *, soft: bool = False, dry_run: bool = False
    ) -> Purge | Affected:
        """Purge all that is stored for a tenant and its users; without a tenant, all that is stored for anybody.

        soft, dry_run: as for `purge`.
        """
        targets = {scope_of_tenant(tenant): aimed((WHOLE_SCOPE,), soft=soft)}
        return await (self.store.affected(targets) if dry_run else self.store.purge(targets))


def scope_of_tenant(tenant: str | None) -> str:
    """Where the tags of a tenant are; without one, those that belong to nobody."""
    return PUBLIC_SCOPE if tenant is None else scope_of(Identity(tenant), "tenant")
