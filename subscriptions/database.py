"""The door to PostgreSQL: engine, metadata, and the settings of both.

One metadata object holds every table of Bode, so that migrations and the declared schema can be compared.
"""

from typing import Any, Final, TypeAlias

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy import MetaData, Row, Select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
"""A row whose columns are named by its statement."""
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
"""A query of which the columns' types are known to the reader only."""


_PASSING: Final = ("08", "53", "57", "55P03", "40001", "40P01")
"""SQLSTATE classes and codes of failures that pass: connection, resources, operator, locks, deadlocks, time limits."""


def passes(error: Exception) -> bool:
    """Whether a failure of the database passes by itself, so that the same may succeed later."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated or isinstance(error, InterfaceError):
            return True
        state = getattr(error.orig, "sqlstate", None) or ""
        return state.startswith(_PASSING) or (isinstance(error, OperationalError) and not state)
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_PASSING)
    lost = asyncpg.InterfaceError | asyncpg.InternalClientError  # the latter: used while it was being lost
    return isinstance(error, PoolTimeout | lost | OSError | TimeoutError)


class DatabaseSettings(BaseModel):
    """Where PostgreSQL is, and how many connections one process may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr = Field(description="PostgreSQL URL, postgresql://user:password@host:port/database.")
    pool_size: int = Field(default=5, ge=1, le=100, description="Connections that one process keeps open.")
    pool_overflow: int = Field(default=5, ge=0, le=100, description="Connections above pool_size in a peak.")
    pool_timeout_seconds: float = Field(default=5, gt=0, le=60, description="Longest wait for a free connection.")
    connect_timeout_seconds: float = Field(default=5, gt=0, le=60, description="Longest wait for a new connection.")
    statement_timeout_seconds: float = Field(default=30, gt=0, le=600, description="Longest run of one statement.")


def async_url(url: str) -> URL:
    """Turns any PostgreSQL URL into the one that asyncpg understands.

    Accepts `postgres://` and `postgresql://`, with or without a driver; libpq's `sslmode` becomes asyncpg's `ssl`.

    Raises:
        ValueError: the URL isn't one of PostgreSQL. The URL, which may hold a password, is not repeated.
    """
    try:
        parsed = make_url(url)
    except Exception:
        raise ValueError("the database URL cannot be read") from None
    if parsed.drivername.partition("+")[0] not in ("postgres", "postgresql"):
        raise ValueError("the database URL must start with postgresql://")
    query = dict(parsed.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    return parsed.set(drivername="postgresql+asyncpg", query=query)


_LATER_SECONDS: Final = 5.0


def create_engine(settings: DatabaseSettings, *, application_name: str = "bode") -> AsyncEngine:
    """Makes the engine of one process. Bound parameters stay out of its logs and of its exceptions' texts."""
    return create_async_engine(
        async_url(settings.url.get_secret_value()),
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.pool_timeout_seconds,
        pool_pre_ping=True,
        hide_parameters=True,
        json_deserializer=orjson.loads,
        connect_args={
            "timeout": settings.connect_timeout_seconds,
            # for when the network swallows the answer: PostgreSQL's own limit can't be told then
            "command_timeout": settings.statement_timeout_seconds + _LATER_SECONDS,
            "server_settings": {
                "application_name": application_name,
                "timezone": "UTC",
                "jit": "off",
                "statement_timeout": str(int(settings.statement_timeout_seconds * 1000)),
            },
        },
    )
