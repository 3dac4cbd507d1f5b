"""Subscriptions as providers make and change them. Each function needs a transaction of `change_log.changing`."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from pydantic import ValidationError
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, InvalidInput, NotFound, PreconditionFailed
from schemas.resources import SubscriptionBody
from subscriptions import credentials, follow_lists, life_cycle, protocols
from subscriptions.change_log import ChangeKind, record_changes
from subscriptions.database import AnyRow
from subscriptions.filter_rules import FilterRules
from subscriptions.grants import could_receive
from subscriptions.requests import forget_refusals
from subscriptions.secrets import KeyRing, SealError, secret_purpose, signing_secret
from subscriptions.sink_urls import SinkRules
from subscriptions.tables import Protocol, Status, subscriptions
from subscriptions.validation import invalid_params

_UNREADABLE: Final = ("sinkCredential", "sinkTls")


async def create(
    connection: AsyncConnection,
    body: SubscriptionBody,
    *,
    organisation_id: UUID,
    keys: KeyRing,
    sinks: SinkRules,
    filters: FilterRules,
) -> tuple[AnyRow, str | None]:
    """Makes a subscription and returns it with its signing secret, if any, which is shown now and never again.

    It waits for a grant (`requested`) or for its sink's consent (`validating`); one that is pulled needs no consent.

    Raises:
        InvalidInput: a filter, the sink or what it is shown isn't acceptable.
    """
    protocols.validate(body, sinks)
    shown = credentials.given(credentials.judged(body, sinks, datetime.now(UTC)))
    protocols.check_identity(body, shown)
    asked = await filters.validate(connection, body, organisation_id=organisation_id)
    identity = uuid4()
    secret = None if body.protocol is Protocol.PULL else signing_secret()
    values = _columns(body) | {
        "evaluated": asked.evaluated,
        "id": identity,
        "organisation_id": organisation_id,
        "secret": None if secret is None else keys.seal(secret.encode(), secret_purpose(identity)),
        **credentials.seal(shown, identity, keys),
    }
    if await _could_receive(connection, organisation_id, body):
        values |= life_cycle.after_grant(has_sink=body.sink is not None)
    else:
        values |= {"status": Status.REQUESTED, "status_reason": life_cycle.NO_GRANT}
    row: AnyRow = (await connection.execute(insert(subscriptions).values(values).returning(subscriptions))).one()
    await credentials.keep_track(connection, identity, shown, renewed=False)
    await follow_lists.name_lists(connection, identity, organisation_id, asked.lists)
    await record_changes(connection, [(ChangeKind.SUBSCRIPTION, identity)])
    return row, secret


async def get(connection: AsyncConnection, subscription_id: UUID, *, organisation_id: UUID | None) -> AnyRow:
    """Returns a subscription that hasn't ended; `organisation_id` None looks in every organisation's.

    Raises:
        NotFound: there is none, it ended, or it is another's.
    """
    statement = select(subscriptions).where(
        subscriptions.c.id == subscription_id, subscriptions.c.status != Status.ENDED
    )
    if organisation_id is not None:
        statement = statement.where(subscriptions.c.organisation_id == organisation_id)
    row: AnyRow | None = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound
    return row


def expect_version(row: AnyRow, expected: int | None) -> None:
    """Raises `PreconditionFailed` unless the row has the version that the caller read; None: any will do."""
    if expected is not None and row.version != expected:
        raise PreconditionFailed


async def replace(
    connection: AsyncConnection,
    row: AnyRow,
    body: SubscriptionBody,
    *,
    keys: KeyRing,
    sinks: SinkRules,
    filters: FilterRules,
) -> AnyRow:
    """Replaces what a provider says of a subscription; its status follows where it must.

    Raises:
        InvalidInput: a filter, the sink, what it is shown, or another protocol isn't acceptable; nothing was changed.
        Conflict: it was changed meanwhile, or what stays can't be read.
    """
    protocols.stays(row, body)
    protocols.validate(body, sinks)
    former = _former_identity(row, body, keys)
    shown = credentials.given(
        credentials.judged(body, sinks, datetime.now(UTC)), former, same_sink=body.sink == row.sink
    )
    protocols.check_identity(body, shown)
    asked = await filters.validate(connection, body, organisation_id=row.organisation_id, subscription_id=row.id)
    values = _columns(body) | {"evaluated": asked.evaluated}
    if shown is not former:
        values |= credentials.seal(shown, row.id, keys)
    if protocols.leads_elsewhere(row, body):
        values |= life_cycle.after_sink_change(row)
    asks_anew = any(values[name] != getattr(row, name) for name in ("types", "domain", "source"))
    if life_cycle.is_refused_by_registry(row) and asks_anew:
        await forget_refusals(connection, row.id)
        values |= {"status": Status.REQUESTED, "status_reason": life_cycle.NO_GRANT}
    if values.get("status", row.status) == Status.REQUESTED and await _could_receive(
        connection, row.organisation_id, body
    ):
        values |= life_cycle.after_grant(has_sink=body.sink is not None)
    changed: AnyRow | None = (
        await connection.execute(
            update(subscriptions)
            .where(subscriptions.c.id == row.id, subscriptions.c.version == row.version)
            .values(**values, version=subscriptions.c.version + 1, updated_at=func.now())
            .returning(subscriptions)
        )
    ).one_or_none()
    if changed is None:
        raise Conflict("The subscription was changed at the same time: read it again and repeat the change.")
    if shown is not former:
        await credentials.keep_track(
            connection, row.id, shown, renewed=shown.credential_id != former.credential_id or body.sink != row.sink
        )
    await follow_lists.name_lists(connection, row.id, row.organisation_id, asked.lists)
    await record_changes(connection, [(ChangeKind.SUBSCRIPTION, row.id)])
    return changed


def merged(row: AnyRow, patch: Mapping[str, Any]) -> SubscriptionBody:
    """Returns a subscription after a JSON merge patch (RFC 7396) given by its JSON member names.

    Raises:
        InvalidInput: the result isn't a valid subscription.
    """
    current = content(row).model_dump(mode="json", exclude_none=True)
    result = _merge(current, patch)
    result |= {name: None for name in _UNREADABLE if patch.get(name, ...) is None}  # only null itself says that it goes
    try:
        return SubscriptionBody.model_validate(result)
    except ValidationError as error:
        raise InvalidInput(params=invalid_params(error.errors(), "body")) from None


def content(row: AnyRow) -> SubscriptionBody:
    """Returns what its provider said of a stored subscription; members that were left to their defaults are unset."""
    members = {
        "sink": row.sink,
        "protocol": row.protocol,
        "protocolSettings": row.protocol_settings or None,
        "source": row.source,
        "domain": row.domain,
        "types": row.types or None,
        "filters": row.filters or None,
        "config": row.config or None,
        "subscriberReference": row.subscriber_reference,
        "ordering": row.ordering,
        "retry": None if row.retry is None else {"delays": row.retry},
    }
    return SubscriptionBody.model_validate({name: value for name, value in members.items() if value is not None})


async def rotate_secret(connection: AsyncConnection, row: AnyRow, overlap: timedelta, *, keys: KeyRing) -> AnyRow:
    """Gives a subscription a new signing secret; the old one signs beside it for the time of the overlap.

    Raises:
        Conflict: it has none, because nothing is sent.
    """
    if row.secret is None:
        raise Conflict("This subscription is pulled: nothing is signed, so it has no secret.")
    secret = signing_secret()
    changed: AnyRow = (
        await connection.execute(
            update(subscriptions)
            .where(subscriptions.c.id == row.id)
            .values(
                secret=keys.seal(secret.encode(), secret_purpose(row.id)),
                previous_secret=row.secret if overlap else None,
                previous_secret_expires_at=func.now() + overlap if overlap else None,
                version=subscriptions.c.version + 1,
                updated_at=func.now(),
            )
            .returning(subscriptions)
        )
    ).one()
    await record_changes(connection, [(ChangeKind.SUBSCRIPTION, row.id)])
    return changed


def _former_identity(row: AnyRow, body: SubscriptionBody, keys: KeyRing) -> credentials.Identity:
    try:
        return credentials.open_identity(row, keys)
    except SealError:
        if body.sink != row.sink or {"sink_credential", "sink_tls"} <= body.model_fields_set:
            return credentials.Identity(None, credentials.FIRST, None)
        raise Conflict("What the sink is shown can't be read any more: give sinkCredential and sinkTls anew.") from None


def secret_of(row: AnyRow, keys: KeyRing) -> str:
    """Returns the signing secret of a subscription."""
    return keys.open(row.secret, secret_purpose(row.id)).decode()


async def _could_receive(connection: AsyncConnection, organisation_id: UUID, body: SubscriptionBody) -> bool:
    return await could_receive(
        connection, organisation_id, types=body.types or (), domain=body.domain, source=body.source
    )


def _columns(body: SubscriptionBody) -> dict[str, Any]:
    settings = body.protocol_settings
    return {
        "sink": body.sink,
        "protocol": body.protocol.value,
        "protocol_settings": {} if settings is None else settings.model_dump(mode="json", exclude_none=True),
        "source": body.source,
        "domain": body.domain,
        "types": body.types or [],
        "filters": body.filters or [],
        "config": body.config or {},
        "heartbeat_seconds": body.heartbeat_seconds,
        "heartbeat_at": None,
        "subscriber_reference": body.subscriber_reference,
        "ordering": body.ordering.value,
        "retry": None if body.retry is None else [delay.total_seconds() for delay in body.retry.delays],
    }


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merge(result.get(name), value)
    return result
