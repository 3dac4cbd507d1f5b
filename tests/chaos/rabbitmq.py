"""A private RabbitMQ that can be killed, and told by its own Erlang to close connections and to raise alarms."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from broker.tools.local.accounts import Account
from broker.tools.local.rabbitmq import Installation, RabbitMQ, Registry
from broker.tools.local.server import Program, ServerFailed

_CALL_SECONDS = 20.0
_WITHIN = """#!/bin/sh
# In a mount namespace of its own: the server sees its data folder at the same place inside the tree.
set -e
mkdir -p "{root}{folder}"
mount --bind "{folder}" "{root}{folder}"
mount -t proc proc "{root}/proc"
mount --bind /dev "{root}/dev"
exec chroot "{root}" {script}
"""


class ChaosRabbitMQ(RabbitMQ):
    """The machine's RabbitMQ, or that of a Debian tree (`root`) by chroot."""

    def __init__(self, folder: Path, registries: Sequence[Registry], root: Path | None = None) -> None:
        super().__init__(folder, registries, installation=None if root is None else _within(root, folder))
        self._root = root

    async def launch(self) -> Program:
        """Start it."""
        if self._root is not None:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, 0, 0, follow_symlinks=False)
            self._account = Account(os.geteuid(), os.getegid())
        return await super().launch()

    @property
    def _node(self) -> psutil.Process | None:
        if self._program is None or not self._program.running:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._program._process.pid).children():
                if child.name() == "beam.smp":
                    return child
        return None

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        node = self._node
        if node is not None and self._program is not None:
            node.send_signal(signal.SIGKILL)
            async with asyncio.timeout(20):
                await self._program.ended()

    async def start_again(self) -> None:
        for attempt in range(4):
            try:
                await self.restart()
                return
            except (ServerFailed, OSError):
                await asyncio.sleep(1 + attempt)
        await self.restart()

    async def evaluate(self, expression: str) -> str:
        """Evaluate an Erlang expression on the node, by its own distribution.

        Raises:
            ServerFailed: it isn't there, or the expression failed.
        """
        node = self._node
        if node is None:
            raise ServerFailed("the node isn't running")
        words = node.cmdline()
        port = words[words.index("-erl_epmd_port") + 1]
        name = f"chaos{os.getpid()}@localhost"
        # the expression is evaluated on the node: parsed here, sent as a function of erl_eval
        code = (
            f'{{ok, T, _}} = erl_scan:string("{_quoted(expression)}."), {{ok, E}} = erl_parse:parse_exprs(T), '
            "case rpc:call('bode@localhost', erl_eval, exprs, [E, []]) of "
            '{value, V, _} -> io:format("~p", [V]), halt(0); X -> io:format("~p", [X]), halt(1) end.'
        )
        command = [
            "erl", "-noinput", "-boot", "start_clean", "-sname", name, "-hidden", "-start_epmd", "false",
            "-dist_listen", "false", "-erl_epmd_port", port, "-eval", code,
        ]  # fmt: skip
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder / "home")}
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ServerFailed("Erlang doesn't answer") from None
        if process.returncode != 0:
            raise ServerFailed(f"Erlang said {said.decode(errors='replace')[-300:]}")
        return said.decode(errors="replace")

    async def close_connections(self) -> None:
        await self.evaluate('[rabbit_networking:close_connection(P, "chaos") || P <- rabbit_networking:connections()]')

    async def alarm_memory(self, raised: bool) -> None:
        await self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({'0.00001' if raised else '0.4'})")

    async def alarm_disk(self, raised: bool) -> None:
        limit = 1 << 60 if raised else 50_000_000
        await self.evaluate(f"rabbit_disk_monitor:set_disk_free_limit({limit})")


def _within(root: Path, folder: Path) -> Installation:
    """A script that starts the tree's server."""
    [server] = sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))
    folder.mkdir(parents=True, exist_ok=True)
    inner = folder.parent / f"{folder.name}-within"
    inner.write_text(_WITHIN.format(root=root, folder=folder.absolute(), script=f"/{server.relative_to(root)}"))
    inner.chmod(0o700)
    script = folder.parent / f"{folder.name}-start"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("unshare")} --mount "{inner}"\n')
    script.chmod(0o700)
    return Installation(script)


def _quoted(expression: str) -> str:
    return expression.replace("\\", "\\\\").replace('"', '\\"')
