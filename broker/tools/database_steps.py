"""What `bode up` does in the database before the processes start: the schema, and the parties of the demo.

A program of its own, `python -m broker.tools.database_steps [DATA-DIR]` with BODE_DATABASE_URL: what it imports is
much, and `bode up` needs none of it afterwards. With a data directory it makes the demo's parties and keeps their keys
there.
"""

import asyncio
import os
import sys
from pathlib import Path

from pydantic import SecretStr

from broker.migrations import migrate
from broker.tools.demo_parties import prepare
from subscriptions.database import DatabaseSettings, create_engine


async def main(database_url: str, demo_dir: Path | None) -> None:
    """Take the steps. Idempotent."""
    engine = create_engine(DatabaseSettings(url=SecretStr(database_url)), application_name="bode up")
    try:
        await migrate(engine)
        if demo_dir is not None:
            await prepare(engine, demo_dir)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(os.environ["BODE_DATABASE_URL"], Path(sys.argv[1]) if len(sys.argv) > 1 else None))
