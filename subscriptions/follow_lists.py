"""Follow lists: which subjects an organisation follows, changed by many at once, and what processes learn of it.

No subject is stored, only its keyed 128-bit digest: a list of BSNs is about the most sensitive thing that Bode could
hold, nobody needs to read one back (its owner has it), and a database or backup that leaks without the key then tells
how many are followed, not who. Without the key a nine-digit number can't be tried out either. The first 64 bits of a
digest are the fingerprint that processes hold in memory, so they can be loaded and changed without any subject.

Whoever calls these passes in the digest, because its key belongs to the broker. What changes anything needs a
transaction of `change_log.changing`; each call writes one entry of the change log with the fingerprints that it
touched, which is pruned with that log: a process that was away for longer reads the lists anew.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import delete, exists, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA
from sqlalchemy.dialects.postgresql import insert as insert_new
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, InvalidInput, NotFound
from subscriptions.change_log import ChangeKind, record_changes
from subscriptions.database import AnyRow
from subscriptions.follow_steps import FINGERPRINT_BYTES
from subscriptions.tables import follow_changes, follow_lists, followed_subjects, subscription_follow_lists

MOST_AT_ONCE: Final = 2_000
"""Subjects in one call: more would hold acceptance up noticeably, since no event is accepted during a change."""
LONGEST_SUBJECT: Final = 4_096

SubjectDigest: TypeAlias = Callable[[str], bytes]
"""The installation's keyed 128-bit digest of a subject: the same subject always gives the same 16 bytes."""


async def create_list(connection: AsyncConnection, *, organisation_id: UUID, name: str) -> AnyRow:
    """Makes an empty list. Matching needs to see nothing of it yet, so it isn't in the change log.

    Raises:
        InvalidInput: the name is empty or longer than 200 characters.
    """
    if not 1 <= len(name) <= 200:
        raise InvalidInput.field("/name", "name", "must have 1 to 200 characters")
    row: AnyRow = (
        await connection.execute(
            insert(follow_lists).values(id=uuid4(), organisation_id=organisation_id, name=name).returning(follow_lists)
        )
    ).one()
    return row


async def get_list(connection: AsyncConnection, list_id: UUID, *, organisation_id: UUID) -> AnyRow:
    """Returns a list; `size` is how many subjects are on it.

    Raises:
        NotFound: the organisation has no such list.
    """
    row: AnyRow | None = (
        await connection.execute(
            select(follow_lists).where(
                follow_lists.c.id == list_id,
                follow_lists.c.organisation_id == organisation_id,
                follow_lists.c.deleted_at.is_(None),
            )
        )
    ).one_or_none()
    if row is None:
        raise NotFound
    return row


async def delete_list(connection: AsyncConnection, list_id: UUID, *, organisation_id: UUID) -> None:
    """Deletes a list that no subscription names; `remove_deleted` then takes its subjects away in portions.

    Raises:
        NotFound: the organisation has no such list.
        Conflict: a subscription's filter names it.
    """
    await get_list(connection, list_id, organisation_id=organisation_id)
    named = exists().where(subscription_follow_lists.c.list_id == list_id)
    if (await connection.execute(select(named))).scalar_one():
        raise Conflict("A subscription names this follow list in its filters: change or end that first.")
    await connection.execute(update(follow_lists).where(follow_lists.c.id == list_id).values(deleted_at=func.now()))


async def add_subjects(
    connection: AsyncConnection,
    list_id: UUID,
    subjects: Sequence[str],
    *,
    organisation_id: UUID,
    digest_of: SubjectDigest,
) -> int:
    """Puts subjects on a list; those that are on it stay. Returns how many are new.

    Raises:
        NotFound: the organisation has no such list.
        InvalidInput: there are too many at once, or one is empty or too long; nothing was added.
    """
    digests = _digests(subjects, digest_of)
    await get_list(connection, list_id, organisation_id=organisation_id)
    given = func.unnest(literal(digests, ARRAY(BYTEA))).column_valued("digest")
    added = await connection.execute(
        insert_new(followed_subjects)
        .from_select(["list_id", "digest"], select(literal(list_id), given))
        .on_conflict_do_nothing()
        .returning(followed_subjects.c.digest)
    )
    return await _record(connection, list_id, 1, [row.digest for row in added])


async def remove_subjects(
    connection: AsyncConnection,
    list_id: UUID,
    subjects: Sequence[str],
    *,
    organisation_id: UUID,
    digest_of: SubjectDigest,
) -> int:
    """Takes subjects off a list; those that aren't on it don't matter. Returns how many were.

    Raises:
        NotFound: the organisation has no such list.
        InvalidInput: there are too many at once, or one is empty or too long; nothing was removed.
    """
    digests = _digests(subjects, digest_of)
    await get_list(connection, list_id, organisation_id=organisation_id)
    removed = await connection.execute(
        delete(followed_subjects)
        .where(
            followed_subjects.c.list_id == list_id,
            followed_subjects.c.digest == func.any(literal(digests, ARRAY(BYTEA))),
        )
        .returning(followed_subjects.c.digest)
    )
    return await _record(connection, list_id, -1, [row.digest for row in removed])


async def deleted_lists(connection: AsyncConnection) -> list[UUID]:
    """Returns the lists that `remove_deleted` has work on."""
    found = await connection.execute(
        select(follow_lists.c.id).where(follow_lists.c.deleted_at.is_not(None)).order_by(follow_lists.c.deleted_at)
    )
    return list(found.scalars())


async def remove_deleted(connection: AsyncConnection, list_id: UUID) -> bool:
    """Takes one portion of subjects off a deleted list, and the list away when none is left; says whether it went."""
    some = (
        select(followed_subjects.c.digest)
        .where(followed_subjects.c.list_id == list_id)
        .limit(MOST_AT_ONCE)
        .scalar_subquery()
    )
    removed = await connection.execute(
        delete(followed_subjects)
        .where(followed_subjects.c.list_id == list_id, followed_subjects.c.digest.in_(some))
        .returning(followed_subjects.c.digest)
    )
    digests = [row.digest for row in removed]
    await _record(connection, list_id, -1, digests)
    if len(digests) == MOST_AT_ONCE:
        return False
    await connection.execute(
        delete(follow_lists).where(follow_lists.c.id == list_id, follow_lists.c.deleted_at.is_not(None))
    )
    return True


async def of_organisation(connection: AsyncConnection, organisation_id: UUID, wanted: Sequence[UUID]) -> set[UUID]:
    """Returns those of the lists that the organisation has."""
    found = await connection.execute(
        select(follow_lists.c.id).where(
            follow_lists.c.id.in_(wanted),
            follow_lists.c.organisation_id == organisation_id,
            follow_lists.c.deleted_at.is_(None),
        )
    )
    return set(found.scalars())


def written(list_id: bytes) -> str:
    """Returns a list's id as filters write it, from its 16 bytes."""
    return str(UUID(bytes=list_id))


async def name_lists(
    connection: AsyncConnection, subscription_id: UUID, organisation_id: UUID, lists: Sequence[UUID]
) -> None:
    """Records which lists the filters of a subscription name, in place of those that they named before."""
    named = subscription_follow_lists
    await connection.execute(delete(named).where(named.c.subscription_id == subscription_id))
    if lists:
        rows = [
            {"subscription_id": subscription_id, "list_id": list_id, "organisation_id": organisation_id}
            for list_id in lists
        ]
        await connection.execute(insert(named), rows)


def _digests(subjects: Sequence[str], digest_of: SubjectDigest) -> list[bytes]:
    # In one order, each once: two callers that add the same subjects never wait for each other in a circle.
    if len(subjects) > MOST_AT_ONCE:
        raise InvalidInput.field("/subjects", "too-many", f"must be at most {MOST_AT_ONCE} at once")
    for position, subject in enumerate(subjects):
        if not 1 <= len(subject) <= LONGEST_SUBJECT:
            expected = f"must have 1 to {LONGEST_SUBJECT} characters"
            raise InvalidInput.field(f"/subjects/{position}", "subject", expected)
    return sorted({digest_of(subject) for subject in subjects})


async def _record(connection: AsyncConnection, list_id: UUID, step: int, digests: Sequence[bytes]) -> int:
    # Counts and logs what really changed.
    if digests:
        await connection.execute(
            update(follow_lists)
            .where(follow_lists.c.id == list_id)
            .values(size=follow_lists.c.size + step * len(digests))
        )
        version = await record_changes(connection, [(ChangeKind.FOLLOW_LIST, list_id)])
        fingerprints = b"".join(digest[:FINGERPRINT_BYTES] for digest in digests)
        await connection.execute(
            insert(follow_changes).values(version=version, list_id=list_id, step=step, fingerprints=fingerprints)
        )
    return len(digests)
