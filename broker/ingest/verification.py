"""Hits on follow lists, verified in PostgreSQL inside the accepting transaction, before a delivery gets its number.

What is in memory are fingerprints, and a wrong hit would tell a provider of somebody whom it doesn't follow. A list
counts only for subscriptions of its own organisation. One query for a batch, and none where nothing rests on a list.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol
from uuid import UUID

import asyncpg

from broker.matching.index import Hit, Index
from broker.storage import acceptance
from broker.storage.fingerprints import Fingerprints
from broker.telemetry import FOLLOW_HITS
from schemas.cloudevents import Event


class Matched(Protocol):
    """An event with what it matched."""

    @property
    def event(self) -> Event:
        """The event."""

    @property
    def subscriptions(self) -> Collection[int]:
        """The subscriptions that it seems to be for."""

    def drop(self, subscriptions: Collection[int]) -> None:
        """It isn't for these after all."""


async def verify(
    connection: asyncpg.Connection,
    index: Index,
    fingerprints: Fingerprints,
    organisation_of: Callable[[int], UUID],
    batch: Iterable[Matched],
) -> None:
    """Drop the matches that rest on a hit which PostgreSQL doesn't confirm.

    `organisation_of`: whose a subscription is.

    Raises:
        asyncpg.PostgresError, OSError: when the lists can't be read.
        UnknownFollowList: when a list isn't there.
    """
    questions: list[tuple[Matched, UUID, list[int], set[Hit]]] = []
    for matched in batch:
        whose: dict[UUID, list[int]] = {}
        for key in index.followers(matched.subscriptions):
            whose.setdefault(organisation_of(key), []).append(key)
        for organisation, keys in whose.items():
            if hits := index.hits(matched.event, keys):
                questions.append((matched, organisation, keys, hits))
    if not questions:
        return
    asked = list(dict.fromkeys((organisation, hit) for _, organisation, _, hits in questions for hit in hits))
    digests = {subject: fingerprints.subject(subject) for _, (_, subject) in asked}
    answers = await acceptance.verify_follows(
        connection,
        [organisation for organisation, _ in asked],
        [list_id for _, (list_id, _) in asked],
        [digests[subject] for _, (_, subject) in asked],
    )
    true = {question for question, holds in zip(asked, answers, strict=True) if holds}
    FOLLOW_HITS.labels("verified").inc(len(true))
    FOLLOW_HITS.labels("refused").inc(len(asked) - len(true))
    for matched, organisation, keys, hits in questions:
        verified = {hit for hit in hits if (organisation, hit) in true}
        if len(verified) < len(hits):
            matched.drop(set(keys).difference(index.confirmed(matched.event, keys, verified)))
