"""`python -m tests.chaos`: runs seeds one after the other and writes a table. See docs/reliability.md."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from tests.chaos import clock, debian
from tests.chaos.namespace import Mounts
from tests.chaos.provocations import GATE_KINDS, PROVOCATIONS
from tests.chaos.run import Order, Report, Run
from tests.chaos.schedule import Cast, plan
from tests.chaos.subscribers import WANTED

PATHS = [wanted.path for wanted in WANTED if wanted.protocol == "HTTP"]
FEW = ("api1", "ingest1", "ingest2", "deliver1", "deliver2")


def main() -> int:
    """Run what the arguments say; 0 when nothing was lost."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # lost connections are what this is about
    arguments = _arguments()
    mounts = Mounts()
    if mounts.possible:
        mounts.make(Path("/dev/shm"), 1 << 30, "1777")  # what libfaketime leaves there goes with us
    else:
        print(f"SKIPPED: disks that are full: {mounts.reason}", flush=True)
    tree = _tree(arguments)
    reports = []
    for order in _orders(arguments, tree):
        print(f"── {order.name}", flush=True)
        for fault in order.schedule:
            print(f"   {fault}", flush=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(Run(order, mounts, lambda text: print(text, flush=True)).run())
        reports.append(report)
        for complaint in report.complaints:
            print(f"✖ {complaint}", flush=True)
        print(_summary(report), flush=True)
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            with arguments.json.open("a") as file:
                file.write(json.dumps(report.as_json()) + "\n")
    print(table(reports), flush=True)
    return 1 if any(report.complaints for report in reports) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seconds", type=float, default=120, help="how long faults are made, for each seed")
    parser.add_argument(
        "--rabbitmq", choices=("machine", "4", "both"), default="both", help="which RabbitMQ; 'both' takes turns"
    )
    parser.add_argument("--tree", type=Path, default=Path(".chaos/debian"), help="where RabbitMQ 4 is, or is put")
    parser.add_argument("--mutation", choices=sorted(PROVOCATIONS), help="break a promise and provoke it: must fail")
    parser.add_argument("--without", action="store_true", help="the provocation of a mutation, without the mutation")
    parser.add_argument("--gate", action="store_true", help="the short run of the test command")
    parser.add_argument("--json", type=Path, help="append each report to this file, one a line")
    return parser.parse_args()


def _tree(arguments: argparse.Namespace) -> Path | None:
    if arguments.rabbitmq == "machine" or arguments.gate or arguments.mutation:
        return None
    tree, reason = debian.make(arguments.tree)
    if tree is None:
        print(f"SKIPPED: RabbitMQ 4: {reason}", flush=True)
    return tree


def _orders(arguments: argparse.Namespace, tree: Path | None) -> list[Order]:
    if clock.library() is None:
        print("SKIPPED: the wall clock doesn't jump: libfaketime is not installed", flush=True)
    if arguments.mutation is not None:
        given = PROVOCATIONS[arguments.mutation]
        order = Order(
            arguments.mutation,
            given.schedule,
            given.seconds,
            rate=given.rate,
            mutation=arguments.mutation,
            standby=False,
            moving_clock=False,
            processes=FEW,
            patience=80,
            shards=given.shards,
        )
        return [replace(order, name=f"{order.name}, not applied", mutation=None) if arguments.without else order]
    if arguments.gate:
        seed, seconds = arguments.first, 14.0
        schedule = plan(seed, seconds, Cast(PATHS, FEW), GATE_KINDS)
        return [Order(f"gate, seed {seed}", schedule, seconds, seed, standby=False, moving_clock=False, processes=FEW)]
    orders = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        four = tree is not None and (arguments.rabbitmq == "4" or seed % 2 == 0)
        schedule = plan(seed, arguments.seconds, Cast(PATHS))
        orders.append(Order(f"seed {seed}", schedule, arguments.seconds, seed, tree=tree if four else None))
    return orders


def _summary(report: Report) -> str:
    verdict = "✖ FAILED" if report.complaints else "✔ nothing lost, nothing out of order"
    skipped = f"; skipped {report.skipped}" if report.skipped else ""
    died = f"; ended by themselves {report.died_by_themselves}" if report.died_by_themselves else ""
    return (
        f"{verdict}: RabbitMQ {report.rabbitmq}, PostgreSQL {report.postgres}, {report.wall_seconds:.0f} s; "
        f"{report.events} events ({report.republished} published again, {report.rejected} rejected), "
        f"{report.deliveries} deliveries ({report.dead} dead letters, {report.corrected} corrected in time), "
        f"{report.attempts} attempts, "
        f"{report.duplicates} duplicates {report.duplicates_by_fault}; "
        f"{sum(report.faults.values())} faults {report.faults}, "
        f"at most {report.reconnects} reconnects in a loop{skipped}{died}"
    )


def table(reports: Sequence[Report]) -> str:
    """A Markdown table, and a second one of the faults by kind."""
    lines = [
        "| run | RabbitMQ | events | again | deliveries | dead letters | attempts | duplicates | faults | broken |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    faults: dict[str, int] = {}
    for report in reports:
        lines.append(
            f"| {report.name} | {report.rabbitmq} | {report.events:,} | {report.republished:,} | "
            f"{report.deliveries:,} | {report.dead:,} | {report.attempts:,} | {report.duplicates:,} | "
            f"{sum(report.faults.values())} | {len(report.complaints) or 'none'} |"
        )
        for name, count in report.faults.items():
            faults[name] = faults.get(name, 0) + count
    lines += ["", "| fault | times |", "|---|--:|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(faults.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
