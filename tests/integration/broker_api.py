"""The broker's own routes, beside those of management, in the application of a test."""

from typing import Any

from accepting import RING, Broker
from fastapi import APIRouter

from broker.api.context import BrokerContext
from broker.ingest.view import View
from broker.storage import installation
from subscriptions.context import API_PREFIX


async def serve(bode: Broker, *routers: APIRouter) -> None:
    """Serve routers that need no more of their context than the view and the fingerprints."""
    router = APIRouter(prefix=API_PREFIX)
    for each in routers:
        router.include_router(each)
    bode.world.app.include_router(router)
    context: Any = BrokerContext.__new__(BrokerContext)
    object.__setattr__(context, "view", View(bode.world.engine))
    object.__setattr__(context, "fingerprints", await installation.fingerprints(bode.pool, RING))
    bode.world.app.state.broker_context = context
