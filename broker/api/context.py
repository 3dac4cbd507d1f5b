"""What the broker's routes work with besides the context of `subscriptions`."""

from dataclasses import dataclass
from typing import cast

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from broker.api.arrivals import Arrivals
from broker.ingest.publishing import Publisher
from broker.ingest.view import View
from broker.storage.fingerprints import Fingerprints


@dataclass(frozen=True, slots=True)
class BrokerContext:
    """Everything that a route of the broker needs and that outlives a request."""

    engine: AsyncEngine
    publisher: Publisher
    view: View
    fingerprints: Fingerprints
    arrivals: Arrivals
    event_max_bytes: int
    batch_max_bytes: int
    batch_max_events: int


def broker_context_of(request: Request) -> BrokerContext:
    """Returns the broker's context of the application that a request came to."""
    return cast(BrokerContext, request.app.state.broker_context)
