"""Random filters, events and follow lists for differential tests: small pools of values, so that much matches."""

import json
import random
from typing import Any

from schemas.cloudevents import Event
from schemas.filters import DATA, FOLLOWS

TYPES = ["nl.brp.x", "nl.brp", "nl.brpx", "nl.kvk.y", "t"]
WORDS = ["", "a", "ab", "abc", "abcab", "true", "TRUE", "false", "1", "01", "-7", "7", "2147483648", "é", "e\u0301"]
WORDS += ["\u0000", "\U0001f600", "%_", "a\\b", "nl.brp.x", "nl.brp", "it's", '"', "aXc", "\u202eab", "K", "\u212a"]
NAMES = ["subject", "x", "y", "n", "b", "source", "time"]
TOKENS = ["a", "b", "0", "é", "a/b", "~", '"\n']
SCALARS: list[Any] = ["", "a", "ab", "abc", "1", 1, 1.0, 0, -2, 2.5, 10**20, True, False, None]
DATES = ["2025-01-01", "2024-12-31", "2025-01-01T00:30:00+01:00", "2024-12-31T23:30:00Z", "2025-02-30"]
LISTS = ["list-1", "list-2", "list-3"]
MEMBERS = {name: set(random.Random(name).sample(WORDS, 9)) for name in LISTS}


def lists_of(subject: str) -> tuple[str, ...]:
    return tuple(name for name in LISTS if subject in MEMBERS[name])


def holds(list_id: str, subject: str) -> bool:
    return subject in MEMBERS.get(list_id, ())


def event(rng: random.Random) -> Event:
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": rng.choice(["1", "2", "a"]),
        "source": rng.choice(["a", "ab", "nl.brp", "é"]),
        "type": rng.choice(TYPES),
    }
    for name in ("subject", "time"):
        if rng.random() < 0.7:
            attributes[name] = rng.choice(WORDS)
    for name in ("x", "y", "n", "b"):
        if rng.random() < 0.7:
            attributes[name] = rng.choice([*WORDS, 1, 7, -7, 0, True, False, 2**31 - 1, -(2**31)])
    document = dict(attributes)
    if rng.random() < 0.8:
        document["data"] = _data(rng, 3)
    separators = rng.choice([(",", ":"), (",", ":"), (", ", ": ")])  # the last is not canonical, and still right
    return Event(attributes, json.dumps(document, ensure_ascii=rng.random() < 0.5, separators=separators).encode())


def _data(rng: random.Random, depth: int) -> Any:
    choice = rng.random()
    if depth and choice < 0.7:
        return {token: _data(rng, depth - 1) for token in rng.sample(TOKENS, rng.randint(1, 5))}
    if depth and choice < 0.8:
        return [_data(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return rng.choice([*SCALARS, *DATES])


def filters(rng: random.Random) -> list[Any]:
    return [_filter(rng, rng.randint(0, 3)) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3]))]


def _filter(rng: random.Random, depth: int, lists: bool = True) -> dict[str, Any]:
    if depth and rng.random() < 0.6:
        dialect = rng.choice(["all", "any", "any", "not"])
        if dialect == "not":
            return {"not": _filter(rng, depth - 1, False)}
        return {dialect: [_filter(rng, depth - 1, lists) for _ in range(rng.randint(1, 4))]}
    dialect = rng.choice(["exact"] * 4 + ["prefix", "suffix", "sql", "sql", "sql", DATA, DATA, FOLLOWS])
    if dialect == "sql":
        return {"sql": expression(rng, rng.randint(0, 3))}
    if dialect == DATA:
        return {DATA: {_pointer(rng): _test(rng) for _ in range(rng.choice([1, 1, 2]))}}
    if dialect == FOLLOWS:
        if lists:
            return {FOLLOWS: {rng.choice(["subject", "x"]): rng.choice([*LISTS, "unknown"])}}
        dialect = "exact"
    chosen = {}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice([*NAMES, "type", "type", "id", "missing"])
        chosen[name] = rng.choice(TYPES if name == "type" else WORDS)
    return {dialect: chosen}


def _pointer(rng: random.Random) -> str:
    tokens = [rng.choice(TOKENS) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3]))]
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in tokens)


def _test(rng: random.Random) -> Any:
    match rng.randint(0, 5):
        case 0 | 1:
            return rng.choice(SCALARS)
        case 2:
            return {"in": rng.sample(SCALARS, rng.randint(1, 6))}
        case 3:
            return {"prefix": rng.choice(["", "a", "ab", "2025"])}
        case 4:
            return {"exists": rng.random() < 0.5}
    test = {rng.choice(["lt", "le"]): rng.choice([*DATES[:4], 1, 2.5, -3, 10**20])}
    if rng.random() < 0.6:
        test[rng.choice(["gt", "ge"])] = rng.choice([*DATES[:4], 1, 2.5, -3, 10**20])
    return test


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "").replace("'", "\\'") + "'"


def expression(rng: random.Random, depth: int) -> str:
    name = rng.choice([*NAMES, "type", "id", "missing"])
    value = _quoted(rng.choice(TYPES if name == "type" else WORDS))
    if depth and rng.random() < 0.7:
        kind = rng.choice(["AND", "AND", "OR", "OR", "XOR", "NOT"])
        if kind == "NOT":
            return f"NOT ({expression(rng, depth - 1)})"
        parts = [f"({expression(rng, depth - 1)})" for _ in range(rng.choice([2, 2, 3, 4]))]
        if rng.random() < 0.2:
            return f" {kind} ".join(parts[:-1]) + f" OR {parts[-1]}"
        return f" {kind} ".join(parts)
    match rng.randint(0, 12):
        case 0 | 1 | 2:
            return f"{name} {rng.choice(['=', '!=', '<>'])} {value}"
        case 3:
            return f"{value} {rng.choice(['=', '!='])} {name}"
        case 4:
            return f"{name} {rng.choice(['=', '!=', '<', '<=', '>', '>='])} {rng.choice([1, 7, -7, 0])}"
        case 5:
            pattern = rng.choice(
                ["a%", "%b", "%bc%", "a%b", "%a%b%", "%", "a_c", "%_b%", "ab%ab", "%abc%", "\\%\\_", ""]
            )
            return f"{name} {rng.choice(['', 'NOT '])}LIKE '{pattern}'"
        case 6:
            listed = ", ".join(_quoted(rng.choice(WORDS)) for _ in range(rng.randint(1, 4)))
            return f"{name} {rng.choice(['', 'NOT '])}IN ({listed})"
        case 7:
            return f"EXISTS {name}"
        case 8:
            return f"NOT {name}"
        case 9:
            return f"{rng.choice(['LENGTH', 'INT', 'BOOL'])}({name}) = {rng.choice(['1', 'TRUE', name])}"
        case 10:
            return f"{name} {rng.choice(['=', '<'])} {rng.choice(NAMES)}"
        case 11:
            return f"{name} = {rng.choice(['TRUE', 'false'])}"
    return rng.choice([name, "TRUE", "FALSE", f"1 / {name} = 1", f"{name} + 1 > 2", f"LOWER({name}) LIKE 'a%'"])
