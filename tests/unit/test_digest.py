"""The digest of a reconciliation, as every receiver computes it, and what a listener makes of a comparison."""

import os
import random
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from broker.tools.client import Api
from broker.tools.listen_reconcile import Marks, Reconciler, digest, mark_of

SOURCE = "urn:nld:oin:00000099000000001000:systeem:BRP"
DOCS = Path(__file__).parents[2] / "docs" / "completeness.md"
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def marks_of(*numbers: int) -> list[tuple[int, bytes]]:
    return [(number, mark_of(SOURCE, f"e{number}")) for number in numbers]


def test_digest_is_the_hash_of_one_line_for_each_number() -> None:
    lines = "".join(f"{number} {sha256(f'{SOURCE}{chr(10)}e{number}'.encode()).hexdigest()}\n" for number in (9, 10))

    assert digest(marks_of(9, 10)) == sha256(lines.encode()).hexdigest()


def test_digest_of_nothing_is_the_hash_of_nothing() -> None:
    assert digest([]) == NOTHING


def test_digest_does_not_depend_on_the_order_of_arrival() -> None:
    marks = marks_of(*range(1, 1001))
    shuffled = random.Random(1).sample(marks, len(marks))

    assert digest(shuffled) == digest(marks)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(marks_of(1, 2), id="one fewer"),
        pytest.param(marks_of(1, 2, 3, 4), id="one more"),
        pytest.param([*marks_of(1, 2), (3, mark_of(SOURCE, "another"))], id="another id"),
        pytest.param([*marks_of(1, 2), (3, mark_of("urn:another", "e3"))], id="another source"),
        pytest.param([*marks_of(1, 2), (4, mark_of(SOURCE, "e3"))], id="another number"),
        pytest.param([(1, mark_of(SOURCE, "e2")), (2, mark_of(SOURCE, "e1")), *marks_of(3)], id="two exchanged"),
        pytest.param([*marks_of(1, 2), (3, mark_of(SOURCE + "\ne3", ""))], id="border shifted"),
    ],
)
def test_digest_differs_when_anything_does(other: list[tuple[int, bytes]]) -> None:
    assert digest(other) != digest(marks_of(1, 2, 3))


def test_example_in_the_docs_is_right() -> None:
    text = DOCS.read_text()
    lines = re.findall(r"^(\d+) ([0-9a-f]{64})$", text, re.M)
    events = re.findall(r"^\| (\d+) \| `(\S+)` \| `(\S+)` \|$", text, re.M)

    assert len(lines) == len(events) == 2
    assert [(int(number), bytes.fromhex(mark)) for number, mark in lines] == [
        (int(number), mark_of(source, identity)) for number, source, identity in events
    ]
    assert f"`{digest((int(number), bytes.fromhex(mark)) for number, mark in lines)}`" in text
    assert NOTHING in text


class Answers:
    """An API that gives the answers to a reconciliation, by where they start."""

    def __init__(self, *answers: Mapping[str, Any]) -> None:
        self._answers = {answer["from"]: answer for answer in answers}

    async def get(self, path: str) -> Any:
        return self._answers[int(path.partition("?from=")[2])]


def block(first: int, last: int, *, without: tuple[int, ...] = ()) -> dict[str, Any]:
    numbers = [number for number in range(first, last + 1) if number not in without]
    return {"from": first, "to": last, "delivered": len(numbers), "digest": digest(marks_of(*numbers))}


def stone(first: int, last: int, state: str) -> dict[str, Any]:
    return {"from": first, "to": last, "state": state, "reason": None}


def answer(
    *blocks: dict[str, Any], stones: tuple[dict[str, Any], ...] = (), following: str | None = None
) -> dict[str, Any]:
    return {
        "from": blocks[0]["from"] if blocks else 1,
        "to": blocks[-1]["to"] if blocks else 0,
        "blocks": list(blocks),
        "tombstones": list(stones),
        "next": following,
    }


EVERY = range(1, 1005)


@pytest.mark.parametrize(
    ("received", "answers", "line"),
    [
        pytest.param([], [answer()], None, id="nothing was given"),
        pytest.param(EVERY, [answer(block(1, 1000), block(1001, 1004))], "✔ reconciled 1–1004", id="all"),
        pytest.param(
            EVERY,
            [answer(block(1, 1000), following="https://…"), answer(block(1001, 1004))],
            "✔ reconciled 1–1004",
            id="in two answers",
        ),
        pytest.param(
            [1, 4],
            [answer(block(1, 4, without=(2, 3)), stones=(stone(2, 2, "dead"), stone(3, 3, "dead")))],
            "✔ reconciled 1–4, dead: 2–3",
            id="dead letters",
        ),
        pytest.param(
            [1, 2, 4],
            [answer(block(1, 4, without=(2, 3)), stones=(stone(2, 3, "pending"),))],
            "✔ reconciled 1–4, pending: 3",
            id="pending for the broker, here already",
        ),
        pytest.param(
            [1, 2, 3, 4],
            [answer(block(1, 4, without=(4,)), stones=(stone(4, 4, "dead"),))],
            "✔ reconciled 1–4",
            id="given up, but it came",
        ),
        pytest.param(
            [1, 2, 3, 5],
            [answer(block(1, 5), stones=())],
            "✖ block 1–5 differs: 4 did not come here",
            id="one is missing",
        ),
        pytest.param(
            [*range(1, 1001)],
            [answer(block(1, 1000), block(1001, 1004))],
            "✖ block 1001–1004 differs: 1001–1004 did not come here",
            id="a block is missing",
        ),
        pytest.param(
            EVERY,
            [answer(block(1, 1000) | {"digest": NOTHING}, block(1001, 1004))],
            "✖ block 1–1000 differs: what came here is not what was sent",
            id="another digest",
        ),
    ],
)
async def test_listener_says_what_a_comparison_proves(
    tmp_path: Path, received: list[int], answers: list[dict[str, Any]], line: str | None
) -> None:
    with Marks(tmp_path / "marks") as marks:
        for number in received:
            marks.put(number, SOURCE, f"e{number}")

        assert await Reconciler(cast(Api, Answers(*answers)), "s", marks).run() == line


def test_marks_are_known_after_a_restart_and_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    with Marks(path) as marks:
        marks.put(3, SOURCE, "e3")
        marks.put(3, SOURCE, "e3")
    with Marks(path) as marks:
        assert list(marks.between(1, 5)) == [
            (1, None),
            (2, None),
            (3, mark_of(SOURCE, "e3")),
            (4, None),
            (5, None),
        ]
    assert os.stat(path).st_mode & 0o077 == 0
