"""The subscription of a listener: made once, found again at the next start with its secret, its port and its ledger.

A listener's folder belongs to one process at a time. It holds the secret, so it is readable by its owner only.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from broker.tools.client import Api, ApiProblem
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Inbox
from broker.tools.listen_reconcile import Marks
from broker.tools.local.locks import locked

_PRIVATE: Final = 0o600
_ASLEEP: Final = ("paused", "disabled", "refused")
RETRY: Final = [1, 2, *[5] * 20, *[60] * 20, *[1800] * 8]
"""Seconds between attempts: a listener that was killed and comes back gets soon what it missed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a listener wants to hear."""

    types: Sequence[str] = ()
    filters: Sequence[Mapping[str, Any]] = ()
    batch: int | None = None
    """Up to how many notifications come in one request; None: each alone."""

    @property
    def settings(self) -> dict[str, Any]:
        """`protocolSettings` that ask for it, or take it away."""
        return {"batch": None if self.batch is None else {"maxCount": self.batch}}


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of the last time."""

    subscription: str
    port: int
    secret: str = field(repr=False)


class Folder:
    """What a listener knows across restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: State | None = None

    @classmethod
    @contextmanager
    def held(cls, path: Path) -> Iterator[Self]:
        """Hold a listener's folder.

        Raises:
            FolderInUse: another process does.
        """
        with locked(path):
            folder = cls(path)
            with suppress(FileNotFoundError):
                folder._state = State(**json.loads((path / "state.json").read_bytes()))
            yield folder

    @property
    def port(self) -> int:
        """The port of the last time; 0: there was none."""
        return 0 if self._state is None else self._state.port

    @property
    def state(self) -> State | None:
        """The subscription of the last time."""
        return self._state

    def keep(self, subscription: str, secret: str, port: int) -> None:
        """Remember, in one step."""
        self._state = State(subscription, port, secret)
        temporary = self._path / "state.json.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self._state), file)
        temporary.replace(self._path / "state.json")

    def forget(self) -> None:
        """The subscription has ended: the next start makes another."""
        if self._state is not None:
            self.ledger_path(self._state.subscription).unlink(missing_ok=True)
            self.marks_path(self._state.subscription).unlink(missing_ok=True)
            (self._path / "state.json").unlink(missing_ok=True)
            self._state = None

    def ledger_path(self, subscription: str) -> Path:
        """Where the numbers received of a subscription are kept."""
        return self._path / f"{subscription}.numbers"

    def marks_path(self, subscription: str) -> Path:
        """Where the marks of what was received of a subscription are kept."""
        return self._path / f"{subscription}.marks"


class OwnSubscription:
    """A subscription whose sink is on this machine."""

    def __init__(self, api: Api, identity: str, folder: Folder) -> None:
        self._api = api
        self.id = identity
        self.ledger = Ledger(folder.ledger_path(identity))
        self.marks = Marks(folder.marks_path(identity))

    @classmethod
    async def take_up(cls, api: Api, folder: Folder, wish: Wish, inbox: Inbox, *, sink: str, port: int) -> Self:
        """Go on with the subscription of the last time, or make one; call it when the sink can be reached.

        Where wish or sink are others than the last time, it is changed. Whatever matched meanwhile is sent now, so
        the inbox is opened first.

        Raises:
            CallFailed: the API refuses it, or doesn't answer.
        """
        return await cls._resume(api, folder, wish, inbox, sink, port) or await cls._make(
            api, folder, wish, inbox, sink, port
        )

    @classmethod
    async def _resume(cls, api: Api, folder: Folder, wish: Wish, inbox: Inbox, sink: str, port: int) -> Self | None:
        state = folder.state
        if state is None:
            return None
        path = f"/subscriptions/{state.subscription}"
        try:
            shown = await api.get(path)
        except ApiProblem as problem:
            if problem.status != 404:
                raise
            folder.forget()
            return None
        own = cls(api, state.subscription, folder)
        inbox.open(state.secret, own.ledger, own.marks)
        wanted: dict[str, Any] = {
            "sink": sink,
            "types": list(wish.types) or None,
            "filters": list(wish.filters) or None,
        }
        changes = {name: value for name, value in wanted.items() if shown.get(name) != value}
        batch = (shown.get("protocolSettings") or {}).get("batch") or {}
        if batch.get("maxCount") != wish.batch:
            changes["protocolSettings"] = wish.settings
        if changes:
            shown = await api.patch(path, changes)
        if shown["status"] in _ASLEEP:
            await api.patch(path, {"status": "active"})
        folder.keep(state.subscription, state.secret, port)
        return own

    @classmethod
    async def _make(cls, api: Api, folder: Folder, wish: Wish, inbox: Inbox, sink: str, port: int) -> Self:
        body: dict[str, Any] = {"sink": sink, "protocol": "HTTP", "retry": {"delays": RETRY}}
        if wish.types:
            body["types"] = list(wish.types)
        if wish.filters:
            body["filters"] = list(wish.filters)
        if wish.batch is not None:
            body["protocolSettings"] = wish.settings
        made = await api.post("/subscriptions", body)
        folder.keep(made["id"], made["secret"], port)
        own = cls(api, made["id"], folder)
        inbox.open(made["secret"], own.ledger, own.marks)
        return own

    async def read(self) -> dict[str, Any]:
        """The subscription as the API shows it."""
        shown: dict[str, Any] = await self._api.get(f"/subscriptions/{self.id}")
        return shown

    async def pause(self) -> None:
        """Keep what matches from now on, until the listener is back."""
        await self._api.patch(f"/subscriptions/{self.id}", {"status": "paused"})

    async def end(self) -> None:
        """End it for good."""
        await self._api.delete(f"/subscriptions/{self.id}")
