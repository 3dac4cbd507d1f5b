"""A small `bode up` that the tests can kill: both servers and two children, told on one line of JSON when all runs."""

import asyncio
import json
import os
import sys
from pathlib import Path

import uvloop

from broker.tools.local.children import Children, Command
from broker.tools.local.locks import locked
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ


async def main(folder: Path) -> None:
    commands = [
        Command(name, ["0", "--bind", "127.0.0.1"], dict(os.environ), folder / f"{name}.log", module="http.server")
        for name in ("one", "two")
    ]
    with locked(folder):
        async with (
            Postgres(folder / "postgres") as postgres,
            RabbitMQ(folder / "rabbitmq") as rabbitmq,
            Children(commands, changed=lambda change: None) as children,
        ):
            report = {"postgres": postgres.url, "rabbitmq": rabbitmq.url(), "children": children.pids}
            print(json.dumps(report), flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
