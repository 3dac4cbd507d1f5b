"""Sinks that want the broker to talk to what it may not, and a canary that sings when it does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

GOOD = "93.184.215.14"
GOOD_6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"

_CHAIN = {f"link{number}.test": (f"link{number + 1}.test",) for number in range(8)}

ZONE = {
    "good.test": (GOOD,),
    "good6.test": (GOOD_6,),
    "redirects.test": (GOOD,),
    "loop.test": ("127.0.0.1",),
    "loop6.test": ("::1",),
    "any.test": ("0.0.0.0",),
    "any6.test": ("::",),
    "ten.test": ("10.0.0.1",),
    "home.test": ("192.168.1.1",),
    "docker.test": ("172.17.0.1",),
    "shared.test": ("100.64.0.1",),
    "metadata.test": ("169.254.169.254",),
    "metadata6.test": ("fd00:ec2::254",),
    "alibaba.test": ("100.100.100.200",),
    "azure.test": ("168.63.129.16",),
    "unique.test": ("fd12:3456::1",),
    "site.test": ("fec0::1",),
    "mapped.test": ("::ffff:127.0.0.1",),
    "compatible.test": ("::127.0.0.1",),
    "nat64.test": ("64:ff9b::a9fe:a9fe",),
    "nat64local.test": ("64:ff9b:1:a00:0:100::",),
    "sixtofour.test": ("2002:7f00:1::1",),
    "teredo.test": ("2001:0:4136:e378:8000:63bf:80ff:fffe",),
    "isatap.test": ("2606:2800::5efe:10.0.0.1",),
    "good-then-bad.test": (GOOD, "127.0.0.1"),
    "bad-then-good.test": ("10.0.0.1", GOOD),
    "good4-bad6.test": (GOOD, "::1"),
    "good6-bad4.test": (GOOD_6, "169.254.169.254"),
    "many-good-one-bad.test": (*(f"93.184.215.{last}" for last in range(1, 12)), "192.168.0.1"),
    "alias.test": ("ten.test",),
    **_CHAIN,
    "link8.test": ("127.0.0.1",),
    "alias-of-metadata.test": ("metadata.test",),
    "10.0.0.1.nip.test": ("10.0.0.1",),
    "127.0.0.1.test": ("127.0.0.1",),
    "foo.localhost": ("127.0.0.1",),
    "localhost.test": ("127.0.0.1",),
    "xn--lcalhost-nbh.test": ("127.0.0.1",),  # a Cyrillic o
    "xn--lcalhost-nbh": ("127.0.0.1",),
    "xn--lcalhost-zdg.test": ("::1",),
    "under_score.test": ("127.0.0.1",),
    "a" * 63 + ".test": ("127.0.0.1",),
    # flips: good when it is asked first, bad ever after
    "flips.test": lambda before: (GOOD,) if before == 0 else ("127.0.0.1",),
}

URL, FENCE = "not-a-sink", "address-not-allowed"
SOMEWHERE = "somewhere"
"""Several addresses, of which the system's resolver chooses."""


@dataclass(frozen=True)
class Hostile:
    """A sink that must be refused; `{port}` in the URL is the canary's.

    `at` says by what: its URL cannot be a sink at all, or the fence. `reaches` is the address at which it would come
    in if nothing refused it, on a machine that has every address; None where the kernel itself would not connect.
    """

    url: str
    reaches: str | None = None
    at: str = FENCE


def _each(at: str, *rows: tuple[str, str | None]) -> list[Hostile]:
    return [Hostile(f"http://{host}:{{port}}/hook", reaches, at) for host, reaches in rows]


LITERALS = _each(
    FENCE,
    # this host: plain, short, decimal, octal, hexadecimal, mixed
    ("127.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("127.0.1", "127.0.0.1"), ("2130706433", "127.0.0.1"),
    ("017700000001", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("0X7F.1", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"),
    ("0x7f.0x0.0x0.0x1", "127.0.0.1"), ("0177.0x0.1", "127.0.0.1"), ("127.65535", "127.0.255.255"),
    ("127.255.255.254", "127.255.255.254"), ("0", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("0x0", "127.0.0.1"),
    # networks of one's own
    ("10.0.0.1", "10.0.0.1"), ("10.1", "10.0.0.1"), ("012.0.0.1", "10.0.0.1"), ("167772161", "10.0.0.1"),
    ("172.16.0.1", "172.16.0.1"), ("172.31.255.254", "172.31.255.254"), ("192.168.0.1", "192.168.0.1"),
    ("3232235777", "192.168.1.1"), ("100.64.0.1", "100.64.0.1"), ("100.127.255.254", "100.127.255.254"),
    # metadata of clouds
    ("169.254.169.254", "169.254.169.254"), ("2852039166", "169.254.169.254"), ("0xa9fea9fe", "169.254.169.254"),
    ("0251.0376.0251.0376", "169.254.169.254"), ("169.254.43518", "169.254.169.254"),
    ("169.254.170.2", "169.254.170.2"), ("100.100.100.200", "100.100.100.200"), ("192.0.0.192", "192.0.0.192"),
    ("168.63.129.16", "168.63.129.16"),
    # documentation, benchmarks, relays, reserved, multicast, broadcast
    ("192.0.2.1", "192.0.2.1"), ("198.18.0.1", "198.18.0.1"), ("198.51.100.7", "198.51.100.7"),
    ("203.0.113.9", "203.0.113.9"), ("192.88.99.1", "192.88.99.1"), ("240.0.0.1", "240.0.0.1"), ("224.0.0.1", None),
    ("255.255.255.255", None),
    # IPv6, and IPv4 in it: mapped, compatible, translated, NAT64 of both kinds, 6to4, Teredo, ISATAP
    ("[::1]", "::1"), ("[::]", "::1"), ("[0:0:0:0:0:0:0:1]", "::1"), ("[fd00:ec2::254]", "fd00:ec2::254"),
    ("[fc00::1]", "fc00::1"), ("[fec0::1]", "fec0::1"), ("[2001:db8::1]", "2001:db8::1"), ("[100::1]", "100::1"),
    ("[fe80::1]", None), ("[ff02::1]", None),
    ("[::ffff:127.0.0.1]", "127.0.0.1"), ("[::ffff:7f00:1]", "127.0.0.1"),
    ("[::ffff:169.254.169.254]", "169.254.169.254"), ("[::127.0.0.1]", "::7f00:1"),
    ("[::ffff:0:127.0.0.1]", "::ffff:0:7f00:1"), ("[64:ff9b::127.0.0.1]", "64:ff9b::7f00:1"),
    ("[64:ff9b::a9fe:a9fe]", "64:ff9b::a9fe:a9fe"), ("[64:ff9b:1:a00:0:100::]", "64:ff9b:1:a00:0:100::"),
    ("[64:ff9b:1::8.8.8.8]", "64:ff9b:1::808:808"), ("[2002:7f00:1::]", "2002:7f00:1::"),
    ("[2001:0:7f00:1::1]", "2001:0:7f00:1::1"), ("[2606:2800::5efe:7f00:1]", "2606:2800::5efe:7f00:1"),
    ("[2606:2800::200:5efe:10.0.0.1]", "2606:2800::200:5efe:a00:1"),
    # a zone chooses an interface of ours
    ("[fe80::1%25lo]", None), ("[fe80::1%lo]", None), ("[::1%25lo]", "::1"), ("[::1%1]", "::1"),
)  # fmt: skip

NAMES = _each(
    FENCE,
    ("localhost", "127.0.0.1"), ("LOCALHOST", "127.0.0.1"), ("foo.localhost", "127.0.0.1"),
    ("localhost.test", "127.0.0.1"), ("loop.test", "127.0.0.1"), ("loop.test.", "127.0.0.1"),
    ("LOOP.Test", "127.0.0.1"),
    ("loop6.test", "::1"), ("any.test", "127.0.0.1"), ("any6.test", "::1"), ("ten.test", "10.0.0.1"),
    ("home.test", "192.168.1.1"), ("docker.test", "172.17.0.1"), ("shared.test", "100.64.0.1"),
    ("metadata.test", "169.254.169.254"), ("metadata.test.", "169.254.169.254"), ("metadata6.test", "fd00:ec2::254"),
    ("alibaba.test", "100.100.100.200"), ("azure.test", "168.63.129.16"), ("unique.test", "fd12:3456::1"),
    ("site.test", "fec0::1"), ("mapped.test", "127.0.0.1"), ("compatible.test", "::7f00:1"),
    ("nat64.test", "64:ff9b::a9fe:a9fe"), ("nat64local.test", "64:ff9b:1:a00:0:100::"),
    ("sixtofour.test", "2002:7f00:1::1"), ("teredo.test", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
    ("isatap.test", "2606:2800::5efe:a00:1"),
    # an alias, and one of many steps
    ("alias.test", "10.0.0.1"), ("link0.test", "127.0.0.1"), ("alias-of-metadata.test", "169.254.169.254"),
    # names that look like addresses, and like localhost
    ("10.0.0.1.nip.test", "10.0.0.1"), ("127.0.0.1.test", "127.0.0.1"), ("xn--lcalhost-nbh.test", "127.0.0.1"),
    ("xn--lcalhost-nbh", "127.0.0.1"), ("xn--lcalhost-zdg.test", "::1"), ("under_score.test", "127.0.0.1"),
    ("a" * 63 + ".test", "127.0.0.1"),
)  # fmt: skip

MIXED = _each(
    FENCE,
    *((f"{name}.test", SOMEWHERE) for name in
      ("good-then-bad", "bad-then-good", "good4-bad6", "good6-bad4", "many-good-one-bad")),
)  # fmt: skip
"""One good and one bad address: whichever would be connected to, the name is refused."""

MALFORMED = [
    Hostile(url, at=URL)
    for url in (
        # credentials
        "http://user:secret@127.0.0.1:{port}/", "http://good.test@127.0.0.1:{port}/", "http://@127.0.0.1:{port}/",
        "http://:@127.0.0.1:{port}/", "http://good.test:80@127.0.0.1:{port}/", "http://good.test%40@127.0.0.1:{port}/",
        # readers that disagree about where the host ends
        "http://good.test\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\good.test/", "http://127.0.0.1 .good.test/",
        "http://127.0.0.1:{port} good.test/", "http://[::1", "http://::1:{port}/", "http://127.0.0.1:{port}:80/",
        "http://127.0.0.1:{port}/\r\nHost: good.test", "http://good.test:{port}/\nX: y", "http://\t127.0.0.1:{port}/",
        # characters that look or are folded like others: a fullwidth address, a circled one, localhost in other scripts
        "http://１２７.０.０.１:{port}/", "http://①②⑦.⓪.⓪.①:{port}/", "http://lοcalhost:{port}/", "http://ⅼocalhost:{port}/",
        "http://127。0。0。1:{port}/",
        # other schemes, and none
        "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_GET", "dict://127.0.0.1:{port}/x",
        "ldap://127.0.0.1:{port}/", "unix:///var/run/docker.sock", "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
        "javascript:alert(1)", "data:text/plain,x", "//127.0.0.1:{port}/", "127.0.0.1:{port}", "http:127.0.0.1:{port}",
        "http:///127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "",
        # ports that are none
        "http://127.0.0.1:65536/", "http://127.0.0.1:-1/", "http://127.0.0.1:http/", "http://127.0.0.1:²/",
    )
]  # fmt: skip

FRAGMENTS = [Hostile("http://127.0.0.1:{port}#@good.test/", "127.0.0.1"),
             Hostile("http://127.0.0.1:{port}?@good.test/", "127.0.0.1"),
             Hostile("http://127.0.0.1:{port}/@good.test/", "127.0.0.1")]  # fmt: skip

HOSTILE: Sequence[Hostile] = [*LITERALS, *NAMES, *MIXED, *MALFORMED, *FRAGMENTS]


@dataclass
class Canary:
    """Listens, consents to everything, and writes down at which of our addresses each connection came in."""

    heard: list[str] = field(default_factory=list)
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def start(self, hosts: Sequence[str], ports: Sequence[int] = (0,)) -> Self:
        for wanted in ports:
            port = wanted
            for host in hosts:
                server = await asyncio.start_server(self._sing, host, port)
                port = server.sockets[0].getsockname()[1]
                self._servers.append(server)
            self.port = port
        return self

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    def take(self) -> list[str]:
        """What was heard since the last time."""
        heard, self.heard = self.heard, []
        return heard

    async def _sing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(writer.get_extra_info("sockname")[0])
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status = "204 No Content"
            if b"host: redirects" in head:
                status = "302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/\r\nContent-Length: 0"
            writer.write(f"HTTP/1.1 {status}\r\nWebHook-Allowed-Origin: *\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
