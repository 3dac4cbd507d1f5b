"""What the routes work with, handed to them by the composition root.

The last callables reach into tables that belong to the broker, which this package may not import.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import Request

from schemas.resources import Health
from subscriptions.callers import ApiSettings, Caller, Callers
from subscriptions.change_log import Settled, changing
from subscriptions.consent import HandshakeSettings
from subscriptions.filter_rules import CountEvaluated, FilterRules
from subscriptions.grants import CancelUngranted
from subscriptions.history import Actor
from subscriptions.life_cycle import CancelSubscription
from subscriptions.secrets import KeyRing
from subscriptions.sink_urls import CheckSink, SinkRules

API_PREFIX: Final = "/v1"

HealthOf: TypeAlias = Callable[[Sequence[int]], Awaitable[Mapping[int, Health]]]
"""Returns the health of subscriptions by their internal keys; one that has matched nothing may be missing."""

RouteDomain: TypeAlias = Callable[[UUID, str, str], AbstractAsyncContextManager[None]]
"""Given a registry's id and OIN and a domain that is made inside the block: its events have a way of their own before
it is there. Raises Conflict and Unavailable."""


def no_route(_organisation_id: UUID, _oin: str, _domain: str) -> AbstractAsyncContextManager[None]:
    """Where events don't come by RabbitMQ, there is no way to make."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a route needs and that outlives a request."""

    engine: AsyncEngine
    keys: KeyRing
    settings: ApiSettings
    callers: Callers
    check_sink: CheckSink
    count_evaluated: CountEvaluated
    health_of: HealthOf
    cancel_ungranted: CancelUngranted
    cancel_subscription: CancelSubscription
    settled: Settled
    handshakes: HandshakeSettings = field(default_factory=HandshakeSettings)
    route_domain: RouteDomain = no_route
    offer_queues: bool = False

    def changing(self, actor: Actor | None = None) -> AbstractAsyncContextManager[AsyncConnection]:
        """Opens a transaction of `change_log.changing` that is in force everywhere when the block has been left.

        `actor` is who makes the change, for the history of subscriptions that change with it.
        """
        return changing(self.engine, self.settled, actor)

    @property
    def sinks(self) -> SinkRules:
        """What this installation allows of sinks."""
        return SinkRules(self.settings.allow_http_sinks, self.check_sink, self.offer_queues)

    @property
    def filters(self) -> FilterRules:
        """What this installation allows of filters."""
        return FilterRules(self.count_evaluated, self.settings.max_evaluated_filters)


def context_of(request: Request) -> Context:
    """Returns the context of the application that a request came to."""
    return cast(Context, request.app.state.context)


def caller_of(request: Request) -> Caller:
    """Returns the caller of a request whose route has authenticated it."""
    return cast(Caller, request.state.caller)


def api_url(request: Request) -> str:
    """Returns the base URL of the API as the caller sees it, without a slash at its end."""
    return context_of(request).settings.public_url or str(request.base_url).rstrip("/") + API_PREFIX
