from datetime import UTC, datetime, timedelta
from uuid import uuid4

from managing import administer, drop_database, sibling
from sqlalchemy import text

from broker.migrations import migrate
from broker.storage.partitions import ensure_partitions
from broker.storage.tables import key_at
from subscriptions.database import DatabaseSettings, create_engine


async def test_rows_that_the_default_caught_move_to_their_partition_and_the_next_days_are_made(
    postgres_url: str,
) -> None:
    name = f"bode_test_{uuid4().hex[:12]}"
    await administer(postgres_url, f"CREATE DATABASE {name}")
    url = sibling(postgres_url, name)
    engine = create_engine(DatabaseSettings(url=url))
    try:
        await migrate(engine)
        late = datetime.now(UTC) + timedelta(days=9)
        async with engine.begin() as connection:
            for number in range(3):
                await connection.execute(
                    text("INSERT INTO deliveries (subscription, sequence, event_key, grant_id) VALUES (1, :n, :k, :g)"),
                    {"n": number + 1, "k": key_at(late) + number, "g": uuid4()},
                )
        for _ in range(2):  # again changes nothing
            async with engine.begin() as connection:
                await ensure_partitions(connection, late)
        async with engine.connect() as connection:
            homes = await connection.execute(text("SELECT DISTINCT tableoid::regclass::text FROM deliveries"))
            assert homes.scalars().all() == [f"deliveries_{late:%Y%m%d}"]
            for ahead in range(4):
                table = f"deliveries_{late + timedelta(days=ahead):%Y%m%d}"
                assert (await connection.execute(text("SELECT to_regclass(:n)"), {"n": table})).scalar()
    finally:
        await engine.dispose()
        await drop_database(postgres_url, name)
