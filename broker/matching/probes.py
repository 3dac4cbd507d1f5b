"""One generated function for each partition: reads what its tables need, once, and looks all of them up.

The source consists of counted names and fixed words. Everything that came from users, attribute names included, is a
constant bound to such a name; nothing of it ever becomes source text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from broker.matching.accessors import GRAM, Accessor, accessor, data_key
from broker.matching.atoms import TEXTUAL, integer
from broker.matching.context import Context, ListsOf
from broker.matching.projection import Projection, data_reader
from broker.matching.tables import Table
from broker.matching.trie import Node, Pair
from schemas.cesql import Expression
from schemas.filters import canonical, values
from schemas.filters.algebra import Pointer

Probe = Callable[[Any, bytes, list[int], list[int], Context | None], Context | None]
"""Takes the attributes or their struct, the body, the ids to extend, those that may repeat, the context so far."""

_HEAD: Final = "def probe(source, body, out, many, context):"
_PREPARE: Final = ("if fresh:", "    context = prepare(context, source, body, fields)", "    fresh = False")
_WALK: Final = (
    "have.discard(None)",
    "holds = have.issuperset",
    "nodes = [root, *have]",
    "push = nodes.append",
    "for node in nodes:",
    "    if node.ids is not None:",
    "        out += node.ids",
    "    if node.rest is not None and holds(node.rest):",
    "        out += node.waiting",
    "    if node.below is not None:",
    "        for pair in node.below & have:",
    "            push(node.children[pair])",
    "    if node.others is not None:",
    *(f"        {line}" for line in _PREPARE),
    "        for (rest, guard, repeats), ids in node.others.items():",
    "            if holds(rest) and (guard is None or guard.test(context)):",
    "                if repeats:",
    "                    many += ids",
    "                else:",
    "                    out += ids",
)


def grams(text: str | None) -> Iterable[str]:
    """The distinct runs of three characters."""
    return {text[at : at + GRAM] for at in range(len(text) - GRAM + 1)} if text is not None else ()


def build(
    tables: Sequence[Table],
    root: Node | None,
    pairs: Mapping[Accessor, Mapping[object, Pair]],
    guard_pointers: Iterable[Pointer],
    lists_of: ListsOf,
    projection: Projection | None,
) -> tuple[Probe, str]:
    """The probe for these tables and the trie under `root`, and its source.

    With a projection it takes that struct, else a mapping.
    """
    writer = _Writer(tuple(guard_pointers), lists_of, projection)
    for table in tables:
        writer.look_up(table)
    if root is not None:
        writer.walk(root, pairs)
    source = writer.source()
    exec(compile(source, "<probe>", "exec"), writer.bound)
    return cast(Probe, writer.bound["probe"]), source


class _Writer:
    def __init__(self, guard_pointers: tuple[Pointer, ...], lists_of: ListsOf, projection: Projection | None) -> None:
        self.bound: dict[str, Any] = {
            "Context": Context,
            "lists_of": lists_of,
            "str": str,
            "canonical": canonical,
            "integer": integer,
            "grams": grams,
            "data_key": data_key,
            "number": values.number,
            "date": values.calendar_date,
            "instant": values.instant,
        }
        if projection is not None:
            self.bound["mapping"] = projection.attributes
        self._projection = projection
        self._reads: list[str] = []
        self._looks: list[str] = []
        self._names: dict[Accessor, str] = {}
        self._pointers: dict[Pointer, None] = {}
        self._guard_pointers = guard_pointers
        self._tables = 0
        self._guarded = self._mapped = False

    def look_up(self, table: Table) -> None:
        form = table.form
        found, get = f"r{self._tables}", f"t{self._tables}"
        self._tables += 1
        self.bound[get] = table.buckets.get
        parts = []
        indent = "    "
        for reading in form.signature:
            name = self._read(reading)
            if reading.several:
                self._looks.append(f"{indent}for x in {name}:")
                indent, name = indent + "    ", "x"
            parts.append(name)
        if form.measure is not None:
            measure = self._read(form.measure)
            self._looks.append(f"{indent}if {measure} is not None:")
            indent += "    "
        key = parts[0] if len(parts) == 1 else f"({', '.join(parts)})"
        self._looks += [f"{indent}{found} = {get}({key})", f"{indent}if {found} is not None:"]
        indent += "    "
        to = "many" if form.shared else "out"
        if form.mode == "plain":
            self._looks.append(f"{indent}{to} += {found}")
        elif form.mode == "span":
            self._looks.append(f"{indent}{to} += {found}.match({measure})")
        else:
            self._guarded = True
            self._looks += [
                *(f"{indent}{line}" for line in _PREPARE),
                f"{indent}for guard, ids in {found}.items():",
                f"{indent}    if guard.test(context):",
                f"{indent}        {to} += ids",
            ]

    def walk(self, root: Node, pairs: Mapping[Accessor, Mapping[object, Pair]]) -> None:
        """Find every conjunction in the trie whose pairs the event has."""
        one: list[tuple[str, str]] = []
        several: list[tuple[str, str]] = []
        for place, (reading, known) in enumerate(pairs.items()):
            self.bound[f"p{place}"] = known.get
            (several if reading.several else one).append((f"p{place}", self._read(reading)))
        self.bound |= {"root": root, "set": set, "map": map}
        self._guarded = True
        self._looks.append(
            f"    have = {{{', '.join(f'{get}({name})' for get, name in one)}}}" if one else "    have = set()"
        )
        self._looks += [f"    have.update(map({get}, {name}))" for get, name in several]
        self._looks += [f"    {line}" for line in _WALK]

    def source(self) -> str:
        """The whole function; binds what its parts still need."""
        reading_data = bool(self._pointers)
        if self._guarded:
            self.bound["prepare"] = self._preparer(reading_data)
            self._looks.insert(0, "    fresh = True")
        lines = [_HEAD]
        if self._projection is None:
            lines.append("    get = source.get")
        if reading_data:
            pointers = tuple(dict.fromkeys((*self._pointers, *self._guard_pointers)))
            self.bound["read"] = data_reader(pointers)
        lines.append("    fields = read(body)" if reading_data else "    fields = ()")
        return "\n".join([*lines, *self._reads, *self._looks, "    return context", ""])

    def _preparer(self, reading_data: bool) -> Callable[..., Context]:
        lists_of, projection = self.bound["lists_of"], self._projection
        pointers = tuple(dict.fromkeys((*self._pointers, *self._guard_pointers)))
        guards_only = data_reader(pointers) if self._guard_pointers and not reading_data else None

        def prepare(context: Context | None, source: Any, body: bytes, fields: tuple[object, ...] = ()) -> Context:
            if context is None:
                attributes = source if projection is None else projection.attributes(source)
                context = Context(attributes, body, lists_of, guards_only and (pointers, guards_only))
            if fields:
                context.learn(zip(pointers, fields, strict=True))
            return context

        return prepare

    def _read(self, reading: Accessor) -> str:
        """The variable that holds what the accessor reads; the line that sets it comes with the first use."""
        if (name := self._names.get(reading)) is not None:
            return name
        base = ""
        if reading.kind in ("prefix", "suffix", "label", "list", "gram"):
            base = self._read(accessor("attribute", reading.name))
        elif reading.kind != "computed" and reading.expression is not None:
            base = self._read(accessor("computed", reading.expression))
        name = self._names[reading] = f"v{len(self._names)}"
        self._reads += [f"    {line}" for line in self._lines(reading, name, base)]
        return name

    def _lines(self, reading: Accessor, name: str, base: str) -> list[str]:
        size = int(reading.size)
        field = ""
        if reading.pointer is not None:
            place = list(self._pointers).index(reading.pointer) if reading.pointer in self._pointers else None
            if place is None:
                place = len(self._pointers)
                self._pointers[reading.pointer] = None
            field = f"fields[{place}]"
        match reading.kind:
            case "attribute":
                return self._attribute(reading.name, name)
            case "computed":
                bound = f"e{len(self.bound)}"
                self.bound[bound] = cast(Expression, reading.expression).value
                return [f"{name} = {bound}({self._mapping()})"]
            case "prefix" | "computed-prefix":
                return [f"{name} = {base} and {base}[:{size}]"]
            case "suffix" | "computed-suffix":
                return [f"{name} = {base} and {base}[-{size}:]"]
            case "label":
                return [f"{name} = {base} and ({base} + '.')[:{size}]"]
            case "integer":
                return [f"{name} = integer({self._raw(reading.name)})"]
            case "list":
                return [f"{name} = lists_of({base}) if {base} is not None else ()"]
            case "gram":
                return [f"{name} = grams({base})"]
            case "data":
                return [f"{name} = data_key({field})"]
            case "data-prefix":
                return [f"{name} = {field}", f"{name} = {name}[:{size}] if {name}.__class__ is str else None"]
            case "number" | "date" | "instant":
                return [f"{name} = {reading.kind}({field})"]

    def _mapping(self) -> str:
        """The attributes as a mapping, for expressions."""
        if self._projection is None:
            return "source"
        if not self._mapped:
            self._mapped = True
            self._reads.append("    attributes = mapping(source)")
        return "attributes"

    def _raw(self, attribute: str) -> str:
        if self._projection is not None:
            return f"source.{self._projection.fields[attribute]}"
        bound = f"a{len(self.bound)}"
        self.bound[bound] = attribute
        return f"get({bound})"

    def _attribute(self, attribute: str, name: str) -> list[str]:
        lines = [f"{name} = {self._raw(attribute)}"]
        if attribute not in TEXTUAL:
            lines += [
                f"if {name}.__class__ is not str and {name} is not None:",
                f"    {name} = canonical({name})",
            ]
        return lines
