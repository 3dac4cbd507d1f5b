"""`bode trace`: what became of an event, in one look: accepted, matched, each attempt, how it ended, and why.

Each role sees its own part, as the API gives it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from broker.tools.client import Api, CallFailed
from broker.tools.running import Access, NotFound, Running

Json: TypeAlias = Mapping[str, Any]
Moment: TypeAlias = tuple[datetime, str]
"""When, and what happened."""

_WHY: Final = {
    "younger": "it was made after the event was accepted",
    "not-granted": "no grant that still stands covered the event when it was accepted",
    "filter": "its filter doesn't match",
    "inactive": "it isn't matched in its present state",
    "changed": "it would match now; filter, state or grant were different then",
}
_STATES: Final = ("delivered", "pending", "dead", "cancelled")


class CannotTrace(Exception):
    """There is nothing to tell, or nobody to ask; the message says which."""


async def trace(
    event_id: str,
    *,
    data_dir: Path,
    source: str | None = None,
    as_: str | None = None,
    api_url: str | None = None,
    key: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Print the trace of an event.

    Args:
        event_id: the event's `id`.
        data_dir: where `bode.json` tells of the API and its keys.
        source: the event's `source`, where several use the same id.
        as_: whose part to see: a provider or registry of `bode.json`, by default the operator's.
        api_url: base URL of an API that `bode.json` doesn't tell of.
        key: a key for it, instead of one of `bode.json`.
        tell: prints a line.

    Raises:
        CannotTrace: the caller may see nothing under this id, or the API can't be asked.
    """
    try:
        if key is None:
            access = Running(data_dir).anyone(as_ or "operator")
        else:
            access = Access(api_url or Running(data_dir).api_url, key, as_)
        query = "" if source is None else f"?source={quote(source, safe='')}"
        async with Api(access) as api:
            found = await api.get(f"/traces/{quote(event_id, safe='')}{query}")
    except (CallFailed, NotFound) as error:
        raise CannotTrace(str(error)) from error
    for line in told(found):
        tell(line)


def told(found: Json) -> Iterator[str]:
    """A trace in lines."""
    for number, event in enumerate(found["events"]):
        if number:
            yield ""
        yield f"{event['type']}  {found['id']}"
        yield f"  from {event['source']} (registry {event['registry']})"
        yield from _timeline(event)
        yield from _providers(event.get("providers", ()))
        yield from _reasons(event)
    for rejected in found.get("rejections", ()):
        times = f", {rejected['times']} times" if rejected["times"] > 1 else ""
        moment = _clock(datetime.fromisoformat(rejected["rejectedAt"]))
        yield f"{moment}  rejected{times}: {rejected['code']}: {rejected['detail']}"


def _timeline(event: Json) -> Iterator[str]:
    """Acceptance, attempts and ends in the order of time; then what is still to come."""
    accepted = datetime.fromisoformat(event["acceptedAt"])
    counts = ", ".join(f"{event['counts'][state]} {state}" for state in _STATES if event["counts"][state])
    matched = f"matched {event['matched']} subscription{'s' * (event['matched'] != 1)}"
    deliveries: Sequence[Json] = event.get("deliveries", ())
    moments: list[Moment] = [(accepted, f"accepted, {matched}{f': {counts}' if counts else ''}")]
    waiting = []
    for delivery in deliveries:
        name = f"#{delivery['subscriptionSequence']} of {delivery['subscription']}"
        moments += [
            (
                datetime.fromisoformat(failed["startedAt"]),
                f"{name}  attempt {failed['attempt']} failed: {_fault(failed)}",
            )
            for failed in delivery["failedAttempts"]
        ]
        if delivery["endedAt"] is not None:
            moments.append((datetime.fromisoformat(delivery["endedAt"]), f"{name}  {_end(delivery)}"))
        else:
            due = delivery["nextAttemptAt"]
            when = "as soon as possible" if due is None else f"at {_clock(datetime.fromisoformat(due))}"
            waiting.append(f"  …  {name}  pending, next attempt {when}")
    yield f"  {accepted.astimezone():%Y-%m-%d (UTC%z)}"
    for moment, what in sorted(moments, key=lambda each: each[0]):
        yield f"  {_clock(moment)}  {what}"
    yield from waiting
    shown = len(deliveries)
    if shown and shown < event["matched"]:
        yield f"  and {event['matched'] - shown} more"


def _fault(failed: Json) -> str:
    answer = "no answer" if failed["status"] is None else f"status {failed['status']}"
    excerpt = failed.get("excerpt")
    said = f", {excerpt[:80]!r}" if excerpt else ""
    return f"{answer} ({failed['reason']}) after {failed['milliseconds']} ms{said}"


def _end(delivery: Json) -> str:
    if delivery["state"] == "delivered":
        return f"delivered at attempt {delivery['attempts']}, status {delivery['status']}"
    return f"{delivery['state']} after {delivery['attempts']} attempts: {delivery['reason']}"


def _providers(providers: Sequence[Json]) -> Iterator[str]:
    for provider in providers:
        counts = ", ".join(f"{provider['counts'][state]} {state}" for state in _STATES if provider["counts"][state])
        yield f"  for {provider['name']} ({provider['organisation']}): {counts}"


def _reasons(event: Json) -> Iterator[str]:
    """Why each subscription got it or didn't, condition by condition."""
    for delivery in event.get("deliveries", ()):
        if "explanation" in delivery:
            yield f"  why #{delivery['subscriptionSequence']} of {delivery['subscription']}: its filter matches"
            yield from _conditions(delivery["explanation"])
    for missed in event.get("notDelivered", ()):
        changed = "; it was changed since" if missed["changedSince"] and missed["why"] != "younger" else ""
        yield f"  why not {missed['subscription']}: {_WHY[missed['why']]}{changed}"
        if "explanation" in missed:
            yield from _conditions(missed["explanation"])


def _conditions(explanation: Json) -> Iterator[str]:
    for number, alternative in enumerate(explanation["alternatives"]):
        if number:
            yield "    or"
        if not alternative:
            yield "    ✔ every event"
        for condition in alternative:
            yield f"    {'✔' if condition['holds'] else '✖'} {condition['text']}"
    if not explanation["alternatives"]:
        yield "    ✖ its conditions contradict each other"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S.%f}"[:-3]
