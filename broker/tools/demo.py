"""The demo of `bode up --demo`: registries that publish a slow, believable stream, two providers that receive.

Each provider has a subscription with filters of its own and a ledger that goes on where it was at the last run. What
is shown are types, counts and times: no subjects and no data.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

from rich.console import Console

from broker.tools import samples
from broker.tools.client import Api, CallFailed
from broker.tools.demo_board import Board, Column
from broker.tools.identities import Identities
from broker.tools.listen_receiver import Inbox, Receiver
from broker.tools.listen_subscription import Folder, OwnSubscription, Wish
from broker.tools.publish import Tally, registry_of, send
from broker.tools.publish_doors import AmqpDoor, Door, DoorClosed, HttpDoor
from broker.tools.running import Access

WISHES: Final[Mapping[str, Wish]] = {
    "gemeente": Wish(
        types=[
            "nl.brp.persoon-verhuisd",
            "nl.brp.kind-geboren",
            "nl.brp.persoon-overleden",
            "nl.hr.vestiging-verhuisd",
            "nl.bag.nummeraanduiding-vastgesteld",
            "nl.bag.pand-gebouwd",
            "nl.woz.waarde-herzien",
            "nl.brk.eigendom-overgedragen",
        ],
        filters=[{"exact": {"gemeente": "9999"}}],
    ),
    "pensioenfonds": Wish(
        filters=[
            {
                "any": [
                    {"exact": {"type": "nl.brp.persoon-overleden"}},
                    {"exact": {"type": "nl.brp.persoon-gehuwd"}},
                    {
                        "all": [
                            {"prefix": {"type": "nl.hr.onderneming-"}},
                            {"not": {"exact": {"rechtsvorm": "Stichting"}}},
                        ]
                    },
                ]
            }
        ],
    ),
}
"""What the providers want to hear: a municipality what concerns it, a pension fund deaths, marriages and employers."""

_AGAIN_SECONDS: Final = 1.0


async def run(
    identities: Identities,
    *,
    api_url: str,
    registry_amqp: Mapping[str, str],
    rate: float,
    data_dir: Path,
    console: Console,
    receiver_ready: Callable[[str], None],
) -> None:
    """Publish, receive and show until cancelled.

    Args:
        identities: the organisations of the demo.
        api_url: base URL of the API.
        registry_amqp: RabbitMQ's URL for each registry; empty: publishing goes over HTTP.
        rate: events a second; 0 for silence.
        data_dir: where the providers remember their subscriptions.
        console: where the board is shown.
        receiver_ready: called with the receiver's URL when it accepts requests.
    """
    board = Board(console, [kind.type for kind in samples.CATALOGUE])
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver())
        folders = {
            name: stack.enter_context(Folder.held(data_dir / "listen" / f"demo-{name}"))
            for name in identities.providers
        }
        await receiver.listen_preferably(max(folder.port for folder in folders.values()))
        receiver_ready(receiver.url)
        async with asyncio.TaskGroup() as group:
            group.create_task(board.run())
            for name, provider in identities.providers.items():
                column = board.add(name)
                access = Access(api_url, provider.key, name)
                group.create_task(_receive(access, WISHES[name], folders[name], receiver, column))
            if rate > 0:
                group.create_task(_publish(identities, api_url, registry_amqp, rate, board))


async def _receive(access: Access, wish: Wish, folder: Folder, receiver: Receiver, column: Column) -> None:
    """Take up a provider's subscription, and keep its column true until cancelled."""
    assert access.name is not None
    path = f"/{access.name}"
    inbox = Inbox(column.taken, column.refused)
    receiver.add(path, inbox)
    async with Api(access) as api:
        while True:
            try:
                own = await OwnSubscription.take_up(
                    api, folder, wish, inbox, sink=receiver.url + path, port=receiver.port
                )
                break
            except CallFailed as error:
                column.trouble = str(error)
                await asyncio.sleep(_AGAIN_SECONDS)
        with own.marks, own.ledger:
            column.ledger = own.ledger
            while True:
                try:
                    column.subscription = await own.read()
                    column.trouble = ""
                except CallFailed as error:
                    column.trouble = str(error)
                await asyncio.sleep(_AGAIN_SECONDS)


async def _publish(
    identities: Identities, api_url: str, registry_amqp: Mapping[str, str], rate: float, board: Board
) -> None:
    """Publish samples without end, each registry by its own door."""
    tally = Tally(on_confirmed=lambda event: board.published(event.type))
    doors: dict[str, Door] = {}

    def open_door(type_: str) -> Door:
        name = registry_of(type_)
        if name not in doors:
            url = registry_amqp.get(name)
            access = Access(api_url, identities.registries[name].key, name)
            doors[name] = AmqpDoor(url, tally, patience=None) if url else HttpDoor(access, tally, patience=None)
        return doors[name]

    sources = {name: registry.source for name, registry in identities.registries.items()}
    drafts = samples.stream(Random(), lambda: datetime.now(UTC), sources)
    try:
        await send((draft.encode() for draft in drafts), open_door, tally, rate=rate)
    except DoorClosed as error:
        board.trouble = str(error)
        await asyncio.Event().wait()
