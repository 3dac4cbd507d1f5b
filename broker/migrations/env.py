"""How Alembic runs our migrations: on the connection that `migrate` passes in, each in a transaction of its own."""

from alembic import context
from sqlalchemy import text

import broker.storage.tables  # noqa: F401  # declares the broker's tables in the metadata
import subscriptions.change_log  # likewise
import subscriptions.tables  # noqa: F401  # likewise
from subscriptions.database import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
connection.execute(text("SET lock_timeout = '5s'"))
with context.begin_transaction():
    context.run_migrations()
connection.execute(text("SET lock_timeout = 0"))
