"""`bode listen`: a receiver for providers' developers, with a subscription of its own.

Stopped and started again it goes on where it was: while it is away its subscription is paused, so what matches is
numbered and kept. Whenever it has caught up it tells whether anything is missing, by its own ledger and by the last
number that the broker says it gave.
"""

import asyncio
import hashlib
import re
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson

from broker.processes.workers import stop_on_signals
from broker.tools.client import Api, CallFailed
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Behaviour, Inbox, Receiver
from broker.tools.listen_reconcile import Reconciler
from broker.tools.listen_report import Health, Reporter, Tell
from broker.tools.listen_subscription import Folder, OwnSubscription, Wish
from broker.tools.local.locks import FolderInUse
from broker.tools.running import Access, NotFound, Running

_PATH: Final = "/notifications"
_ASK_SECONDS: Final = 0.1
_SLOWLY_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 5.0
_GOODBYE_SECONDS: Final = 3.0


class CannotListen(Exception):
    """There is nothing to listen to, or nothing to listen with; the message says what to do."""


def print_line(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


async def listen(
    *,
    data_dir: Path,
    as_: str | None = None,
    api_url: str | None = None,
    key: str | None = None,
    types: Sequence[str] = (),
    filters: Sequence[Mapping[str, Any]] = (),
    batch: int | None = None,
    name: str | None = None,
    subscription: UUID | None = None,
    secret: str | None = None,
    port: int | None = None,
    behaviour: Behaviour | None = None,
    end: bool = False,
    show_data: bool = False,
    tell: Tell = print_line,
) -> None:
    """Listen until SIGINT or SIGTERM.

    Args:
        data_dir: where `bode.json` is read and the listener remembers itself.
        as_: the provider of `bode.json` whose key is used; by default the first.
        api_url: base URL of an API that `bode.json` doesn't tell of; with `key`.
        key: the key for it.
        types: the event types to hear; none: all.
        filters: further conditions, in the dialects of the CloudEvents Subscriptions API.
        batch: up to how many notifications come in one request; None: each alone.
        name: what the listener remembers itself by; by default made of `as_`, `types` and `filters`.
        subscription: one that exists, to be used as it is instead of one of its own; with `secret` and `port`.
        secret: its signing secret.
        port: where to listen on the loopback address; by default that of the last time, or a free one.
        behaviour: how to treat notifications, to misbehave on purpose.
        end: end the subscription at exit, instead of pausing it.
        show_data: print each event too, which may identify persons.
        tell: prints a line.

    Raises:
        CannotListen: see its message.
    """
    stop = stop_on_signals()
    reporter = Reporter(tell, show_data=show_data)
    try:
        async with Receiver(behaviour=behaviour) as receiver:
            if subscription is not None:
                if secret is None or port is None:
                    raise CannotListen("--subscription needs --secret, and --port where its sink points to")
                path = data_dir / "listen" / str(subscription)
                with Folder.held(path) as folder, Ledger(folder.ledger_path(str(subscription))) as ledger:
                    await _listen_to_given(receiver, port, secret, ledger, reporter, tell, stop)
                return
            access = _access(data_dir, as_, api_url, key)
            wish = Wish(types, filters, batch)
            with Folder.held(data_dir / "listen" / (name or name_of(access.name, wish))) as folder:
                async with Api(access) as api:
                    await _listen_to_own(api, folder, wish, receiver, port, reporter, end, tell, stop)
    except FolderInUse as error:
        raise CannotListen("another listener of this name is running: stop it, or give this one a --name") from error
    except (CallFailed, NotFound) as error:
        raise CannotListen(str(error)) from error


def name_of(caller: str | None, wish: Wish) -> str:
    """The name of a listener that was given none: the same for the same caller and wish."""
    parts = [caller or "listener", *wish.types]
    readable = re.sub(r"[^A-Za-z0-9._+-]+", "-", "+".join(parts))[:80]
    exact = orjson.dumps([parts, list(wish.filters)], option=orjson.OPT_SORT_KEYS)
    return f"{readable}-{hashlib.sha256(exact).hexdigest()[:8]}"


async def until_active(own: OwnSubscription, inbox: Inbox, tell: Tell) -> None:
    """Wait until notifications are sent, telling of each step, and of what takes long.

    Raises:
        CannotListen: the subscription was refused.
        CallFailed: the API can't be asked.
    """
    loop = asyncio.get_running_loop()
    started, complained = loop.time(), ""
    while True:
        shown = await own.read()
        status, reason = shown["status"], shown.get("statusReason") or ""
        if status == "active":
            tell("✔ granted  ✔ handshake  ✔ active" if inbox.greeted.is_set() else "✔ granted  ✔ active")
            return
        if status == "refused":
            raise CannotListen(f"the subscription was refused: {reason}")
        waited = loop.time() - started
        if (waited > _PATIENCE_SECONDS or status == "requested") and complained != status + reason:
            tell(f"waiting: the subscription is {status}{f' ({reason})' if reason else ''}")
            complained = status + reason
        await asyncio.sleep(_SLOWLY_SECONDS if waited > _PATIENCE_SECONDS else _ASK_SECONDS)


async def _listen_to_own(
    api: Api,
    folder: Folder,
    wish: Wish,
    receiver: Receiver,
    port: int | None,
    reporter: Reporter,
    end: bool,
    tell: Tell,
    stop: asyncio.Event,
) -> None:
    if port is None:
        await receiver.listen_preferably(folder.port)
    else:
        await _listen_on(receiver, port)
    inbox = Inbox(reporter.taken, reporter.refused, reporter.beaten, reporter.tested)
    receiver.add(_PATH, inbox)
    sink = receiver.url + _PATH
    own = await OwnSubscription.take_up(api, folder, wish, inbox, sink=sink, port=receiver.port)

    reconciler = Reconciler(api, own.id, own.marks)

    async def ask() -> Health:
        health: Health = (await own.read())["health"]
        return health

    async def work() -> None:
        await until_active(own, inbox, tell)
        tell(f"listening on {sink} for subscription {own.id}; stop with Ctrl-C")
        await reporter.run(own.ledger, ask, reconciler.run)

    with own.marks, own.ledger:
        await _until(stop, work())
        with suppress(CallFailed, TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                tell(await reconciler.run() or "nothing was sent yet")
        await _say_goodbye(own, folder, end, tell)


async def _listen_to_given(
    receiver: Receiver,
    port: int,
    secret: str,
    ledger: Ledger,
    reporter: Reporter,
    tell: Tell,
    stop: asyncio.Event,
) -> None:
    await _listen_on(receiver, port)
    inbox = Inbox(reporter.taken, reporter.refused, reporter.beaten, reporter.tested)
    inbox.open(secret, ledger)
    for path in ("/", _PATH):
        receiver.add(path, inbox)
    tell(f"listening on {receiver.url}/ and {receiver.url}{_PATH}; stop with Ctrl-C")
    await _until(stop, reporter.run(ledger, None))


async def _say_goodbye(own: OwnSubscription, folder: Folder, end: bool, tell: Tell) -> None:
    """End or pause the subscription; where the API is gone already, it stays as it is."""
    with suppress(CallFailed, TimeoutError):
        async with asyncio.timeout(_GOODBYE_SECONDS):
            if end:
                await own.end()
                folder.forget()
                tell("subscription ended")
                return
            await own.pause()
            tell(f"paused after #{own.ledger.highest}: what comes is kept; start the listener again to have it")
            return
    tell("the API is not there: the subscription stays as it is")


async def _listen_on(receiver: Receiver, port: int) -> None:
    try:
        await receiver.listen(port)
    except OSError as error:
        raise CannotListen(f"port {port} is taken: give another --port") from error


def _access(data_dir: Path, as_: str | None, api_url: str | None, key: str | None) -> Access:
    if key is None:
        return Running(data_dir).provider(as_)
    return Access(api_url or Running(data_dir).api_url, key, as_)


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Work until `stop` is set; what the work raises comes out."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
