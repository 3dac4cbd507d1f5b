"""The migrated schema is the declared one."""

from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from accepting import migrated
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from managing import database
from sqlalchemy import Connection

from broker.migrations import migrate
from broker.storage.tables import PARTITIONED
from subscriptions.database import DatabaseSettings, create_engine, metadata

PARTS = "SELECT inhrelid FROM pg_inherits"
CATALOGUES = {
    "constraints": f"""
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid NOT IN ({PARTS}) AND contype <> 'n'
    """,
    "indexes": f"""
        SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indrelid::regclass::text NOT LIKE 'pg\\_%' AND indrelid NOT IN ({PARTS})
          AND (SELECT relnamespace FROM pg_class WHERE oid = indrelid) = 'public'::regnamespace
    """,
    "relations": f"""
        SELECT relname, relkind::text, reloptions, pg_get_partkeydef(oid), obj_description(oid) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S') AND oid NOT IN ({PARTS})
    """,
    "columns": f"""
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attidentity::text,
               pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
          AND attrelid NOT IN ({PARTS})
    """,
    "functions": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "triggers": "SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "enums": "SELECT enumtypid::regtype::text, enumlabel, enumsortorder FROM pg_enum",
}


@pytest.fixture(scope="module")
def migrated_url(postgres_url: str) -> Iterator[str]:
    with migrated(postgres_url) as made:
        yield made


@pytest.fixture(scope="module")
def declared_url(postgres_url: str) -> Iterator[str]:
    with database(postgres_url) as made:
        yield made


async def read(url: str, statement: str) -> set[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(statement)
    finally:
        await connection.close()
    return {
        tuple(tuple(value) if isinstance(value, list) else value for value in row)
        for row in rows
        if row[0] not in ("alembic_version",)
    }


@pytest.mark.parametrize("catalogue", CATALOGUES)
async def test_migrations_make_what_is_declared(catalogue: str, migrated_url: str, declared_url: str) -> None:
    made, declared = await read(migrated_url, CATALOGUES[catalogue]), await read(declared_url, CATALOGUES[catalogue])
    assert declared, "there is something to compare"
    assert made - declared == set()
    assert declared - made == set()


async def test_alembic_would_add_nothing(migrated_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        def ours(_: object, name: str | None, kind: str, reflected: bool, __: object) -> bool:
            parents = tuple(f"{table.name}_" for table in PARTITIONED)
            return not (kind == "table" and reflected and name is not None and name.startswith(parents)
                        and name not in metadata.tables)  # fmt: skip

        options = {"compare_type": True, "compare_server_default": True, "include_object": ours}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    engine = create_engine(DatabaseSettings.model_validate({"url": migrated_url}))
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_migrating_again_changes_nothing(migrated_url: str) -> None:
    everything = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    before = await read(migrated_url, everything)
    engine = create_engine(DatabaseSettings.model_validate({"url": migrated_url}))
    await migrate(engine)
    await engine.dispose()
    assert await read(migrated_url, everything) == before


async def test_every_partitioned_table_has_a_default_and_days_ahead(migrated_url: str) -> None:
    parts = await read(migrated_url, "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits")
    for table in PARTITIONED:
        own = {part for part, parent in parts if parent == table.name}
        assert f"{table.name}_default" in own
        assert len(own) >= 4
