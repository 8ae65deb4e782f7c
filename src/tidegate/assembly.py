"""Puts the parts together: settings in, five layers on an app out. Only this module and the CLI name concrete adapters.

tide = Tidegate(policies=[RoutePolicy(route="/clients", ttl=60, share="tenant")])
app = tide(app)
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final, cast

from prometheus_client import REGISTRY, CollectorRegistry

from tidegate.adapters import provider_of, seals_of, stops_of, store_of, warn_worker
from tidegate.errors import Problems
from tidegate.flags import UNIT_FIELDS, FlagContext, FlagProvider, Gates
from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.core.identity import Credentials, Identity
from tidegate.middleware.core.policy import Policies, RoutePolicy, Share
from tidegate.middleware.exposition import MetricsApp, ShadowApp
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    ContextResolver,
    Decision,
    FlagGate,
    Gate,
    Identify,
    Receive,
    RequestContext,
    Scope,
    Send,
)
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.identifying import starlette_user
from tidegate.middleware.layers.shadow_notes import ShadowNotes
from tidegate.middleware.layers.stacking import lead_through
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import PUBLIC_SCOPE, WHOLE_SCOPE, Store
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.tracing import opentelemetry_tracer
from tidegate.openings import Openings
from tidegate.ordering import warn_of_order
from tidegate.purging import Purging
from tidegate.runtime import LOOK_EVERY, Mounted, Runtime
from tidegate.settings import Settings
from tidegate.vocabulary import LAYERS, Layer, Unit

__all__ = ["Tidegate", "TidegateMiddleware"]

_log = logging.getLogger("tidegate")

FlagProperties = Callable[[Scope], Mapping[str, str]]
"""Further context fields for flag constraints (region, plan, sessionId), from the scope."""


class Tidegate(Purging):
    """The five layers, their flags and their store, ready to mount on one application.

    settings: from `Settings.load()`; default: memory store, no flags, every layer open.
    identify: who asks; the default reads Starlette's `scope["user"]`. Mount Tidegate inside authentication.
    policies: what the application says about its routes, before those of the settings.
    properties: further context for flag constraints; `sessionId` is the unit where settings say `unit = "session"`.
    layers: which layers to mount; always in the same order.
    store, provider: instead of those that the settings name (tests, or stores of one's own).
    credentials: what marks a request as somebody's.
    registry: Prometheus registry; default: prometheus_client's own.

    Raises:
        ConfigError: if settings and policies do not fit together.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        identify: Identify = starlette_user,
        policies: Iterable[RoutePolicy] = (),
        properties: FlagProperties | None = None,
        layers: Iterable[Layer] = LAYERS,
        store: Store | None = None,
        provider: FlagProvider | None = None,
        credentials: Credentials | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.settings = settings if settings is not None else Settings()
        self._layers = tuple(layers)
        policies = _checked(identify, policies)
        self._metrics = Metrics.of(registry)
        self.provider = provider if provider is not None else provider_of(self.settings, self._metrics)
        seals = seals_of(self.settings, self._metrics) if store is None else None
        self._naming_key = seals.ring.naming_key if seals is not None else b""
        self.store = GuardedStore(
            store if store is not None else store_of(self.settings, self._metrics, seals),
            budget=self.settings.store.budget,
            metrics=self._metrics,
        )
        flags = self.settings.flags
        self.stops = stops_of(self.settings, self.provider, self._metrics)
        self.gates = (
            Gates(
                self.provider,
                stops=self.stops,
                unit=flags.unit,
                edges=flags.bands,
                max_staleness=flags.max_staleness,
                on_error=self._metrics.fail,
            )
            if self.provider is not None
            else None
        )
        self._metrics.flags_ready.set(self.gates is None)  # without flags there is nothing to wait for
        self._openings = Openings(self.gates) if self.gates is not None else None
        if self._openings is not None:
            self._openings.tell("cache", self._begin_epoch)
        self.cohorts = (
            CohortCounters(
                self.gates.label_combinations(),
                directory=self.settings.telemetry.metrics_dir,
                on_error=self._metrics.fail,
            )
            if self.gates is not None
            else None
        )
        if self.cohorts is not None and self.settings.telemetry.metrics_dir is None:
            warn_worker(
                "counts the cohorts for itself: at /metrics they seem to jump, and a rollout is judged by nonsense;"
                " set telemetry.metrics_dir (PROMETHEUS_MULTIPROC_DIR)"
            )
        self.metrics_app: ASGIApp = MetricsApp(registry if registry is not None else REGISTRY, cohorts=self.cohorts)
        self._shadow = ShadowNotes(keep_bodies=self.settings.cache.shadow_bodies, metrics=self._metrics)
        self.shadow_app: ASGIApp = ShadowApp(self._shadow)
        ttl = self.settings.cache.default_ttl
        self._resolver = ContextResolver(
            identify=identify,
            policies=Policies(_with_ttl(policy, ttl) for policy in (*policies, *self.settings.cache.policies)),
            credentials=credentials,
            decide=_decider(self.gates, properties, flags.unit)
            if self.gates is not None and properties is not None
            else None,
            decide_for=self.gates.decide_for if self.gates is not None and properties is None else None,
            on_error=self._metrics.fail,
        )
        self._runtime = Runtime(
            self.store,
            [source for source in (self.stops, self.provider) if source is not None],
            self.gates,
            self._metrics,
            look_every=min(flags.poll_interval, LOOK_EVERY),
        )
        drawn = self.gates is not None and flags.unit != "session" and properties is None
        self._needs_identity = identify is starlette_user and (
            drawn or _is_for_some(self._resolver.policies, self.settings.cache.share)
        )
        self._said: set[str] = set()

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Mount the layers on an app."""
        look = partial(
            warn_of_order, app=app, layers=self._layers, needs_identity=self._needs_identity, said=self._said
        )
        return Mounted(self._stack(app), self._runtime, look)

    async def start(self) -> None:
        """Follow the flags and reach for the store. The application's lifespan does it where it passes the layers; else
        the first request does, which does not wait long for it."""
        await self._runtime.start()

    async def aclose(self) -> None:
        """Finish what is pending and stop; the application's lifespan does it where it passes the layers."""
        await self._runtime.stop()

    async def lifespan(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Speaks ASGI's lifespan for the layers alone, beside an application that has none (Django)."""
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def shadow_report(self) -> dict[str, Any]:
        """What shadow mode has seen in this process, as JSON has it; `shadow_app` answers it over HTTP.

        For operators only: it shows paths and response fields of whoever asked.
        """
        return self._shadow.report()

    def _begin_epoch(self, _shut: bool) -> None:
        """Void all that is stored: when the cache is shut, so that who starts later finds nothing; and when it opens
        again, for what others stored before they saw it shut."""
        self.store.purge_soon({PUBLIC_SCOPE: (WHOLE_SCOPE,)})

    def _stack(self, app: ASGIApp) -> ASGIApp:
        resolver, metrics, bare = self._resolver, self._metrics, app
        makers: dict[Layer, Callable[[ASGIApp, Gate], ASGIApp]] = {
            "telemetry": lambda inner, gate: TelemetryLayer(
                inner,
                gate=gate,
                resolver=resolver,
                cohorts=self.cohorts,
                metrics=metrics,
                tracer=opentelemetry_tracer(),
                debug_headers=self.settings.telemetry.debug_headers,
                # Who can see no open layer in between needs none of them; and plain hits go past those in between.
                hits=inner.leave_hits() if isinstance(inner, CacheLayer) else None,
                bare=bare,
            ),
            "cache": self._cache,
            "coalesce": self._coalesce,
            "breaker": lambda inner, gate: BreakerLayer(inner, gate=gate, resolver=resolver, metrics=metrics),
            "etag": lambda inner, gate: ETagLayer(inner, gate=gate, resolver=resolver),
        }
        made: dict[str, ASGIApp] = {}
        for layer in reversed(LAYERS):
            if layer in self._layers:
                app = made[layer] = makers[layer](app, FlagGate(layer))
        lead_through(bare, made, gate=_all_open)
        return app

    def _coalesce(self, inner: ASGIApp, gate: Gate) -> ASGIApp:
        layer = CoalesceLayer(
            inner, gate=gate, resolver=self._resolver, metrics=self._metrics, purges=self.store.purges_asked
        )
        if self._openings is not None:
            self._openings.tell("coalesce", layer.shut)
        return layer

    def _cache(self, inner: ASGIApp, gate: Gate) -> ASGIApp:
        settings = self.settings.cache
        layer = CacheLayer(
            inner,
            gate=gate,
            resolver=self._resolver,
            store=self.store,
            share=settings.share,
            authorization=settings.authorization,
            max_body=settings.max_body,
            namespace=settings.version,
            naming_key=self._naming_key,
            show_key=settings.show_key,
            shadow=self._shadow,
            metrics=self._metrics,
        )
        if self._openings is not None:
            self._openings.tell("cache", layer.shut)
        return layer


def _decider(gates: Gates, properties: FlagProperties, unit: Unit) -> Callable[[Identity | None, Scope], Decision]:
    unit_field = UNIT_FIELDS[unit]

    def by_properties(identity: Identity | None, scope: Scope) -> Decision:
        known = dict(properties(scope))
        if identity is not None:
            known["tenantId"] = identity.tenant
            if identity.user is not None:
                known["userId"] = identity.user
        return gates.decide(FlagContext(unit=known.get(unit_field), properties=known))

    return by_properties


_ALL: Final = frozenset(LAYERS)


def _all_open(context: RequestContext) -> bool:
    return context.decision is None or context.decision.open >= _ALL


def _is_for_some(policies: Policies, share: Share) -> bool:
    """Whether anything is to be stored for a tenant or a user alone."""
    shares = [policy.share for policy in policies.all if policy.mode != "off"] if policies.all else [share]
    return any(each != "public" for each in shares)


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping)


def _checked(identify: object, policies: object) -> tuple[RoutePolicy, ...]:
    """The policies, if they are some, and if somebody can be asked who asks. Else every request would fail later."""
    problems = Problems("Tidegate")
    if not callable(identify):
        problems.add("identify", identify, "cannot be called", "give a function of the scope, or trusted_headers(…)")
    elif iscoroutinefunction(identify):
        problems.add(
            "identify", identify, "is async", "let authentication further out find who asks, and read its result here"
        )
    is_list = _is_list(policies)
    if not is_list:
        problems.add("policies", policies, "is not a list", "write [RoutePolicy(route=…)]")
    given = tuple(cast(Iterable[object], policies)) if is_list else ()
    for index, policy in enumerate(given):
        if not isinstance(policy, RoutePolicy):
            problems.add(f"policies[{index}]", policy, "is not a RoutePolicy", "write RoutePolicy(route=…)")
    problems.raise_if_any()
    return cast(tuple[RoutePolicy, ...], given)


def _with_ttl(policy: RoutePolicy, ttl: float | None) -> RoutePolicy:
    """A policy without a ttl of its own gets the settings' one."""
    return replace(policy, ttl=ttl) if policy.ttl is None and ttl is not None else policy


class TidegateMiddleware:
    """For frameworks that take a middleware class: `app.add_middleware(TidegateMiddleware, policies=[...])`.

    tide: a Tidegate that was made before; or else the arguments of one. Litestar makes a middleware for each of its
        handlers: give it `tide=`, or each has a store of its own, which no other handler's write purges.

    Litestar also puts it round the apps that it mounts, and hands it paths without their prefix. Those would meet the
    policies of other routes, so what is mounted passes: mount `tide(app)`.
    """

    def __init__(self, app: ASGIApp, tide: Tidegate | None = None, **arguments: Any) -> None:
        if tide is not None and arguments:
            raise TypeError(
                f"TidegateMiddleware: give tide= or its arguments, not both: {', '.join(sorted(arguments))}"
            )
        self.tide = tide if tide is not None else Tidegate(**arguments)
        self._mounted = self.tide(app)
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passes = getattr(scope.get("route_handler"), "is_mount", False)
        await (self.app if passes else self._mounted)(scope, receive, send)
