"""BAG XML, record by record: memory is bounded by the largest record, and what is read is data without names.

Document types are refused, and with them entities, internal and external: Kadaster's files have none. Names lose
their namespace, so that BAG 1.0 and 2.0 read alike. A record becomes nested dicts and strings, text as it stands in
the file; references become the id that they point at, geometry becomes GML text.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast
from xml.etree.ElementTree import Element, ParseError, XMLPullParser
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from broker.tools.bag_archive import BagFileError

_REPEATABLE = frozenset(
    {
        "gebruiksdoel", "heeftAlsNevenadres", "maaktDeelUitVan",
        "gebruiksdoelVerblijfsobject", "gerelateerdPand", "nevenadres",
    }
)  # fmt: skip
"""Always a list, so that a receiver needn't expect two forms."""


def records(chunks: Iterable[bytes], root: str, tag: str, name: str, max_bytes: int) -> Iterator[Element]:
    """The elements of one local name in a file of the given root, whole, each valid until the next is asked for.

    Raises BagFileError.
    """
    parser: XMLPullParser[Any] = XMLPullParser(("start", "end"))
    guard = _Prologue(name)
    path: list[Element] = []
    since_record = 0
    try:
        for chunk in chunks:
            guard.feed(chunk)
            parser.feed(chunk)
            since_record += len(chunk)
            for event, element in cast("Iterator[tuple[str, Element]]", parser.read_events()):
                if event == "start":
                    if not path and local(element.tag) != root:
                        raise BagFileError(
                            f"{name}: not the kind of file that was asked for: {local(element.tag)[:40]}"
                        )
                    path.append(element)
                    continue
                path.pop()
                if local(element.tag) == tag:
                    since_record = 0
                    yield element
                    for ancestor in path:
                        del ancestor[:]
            if since_record > max_bytes + len(chunk):
                raise BagFileError(f"{name}: a record of more than {max_bytes} bytes")
        parser.close()
    except ParseError as error:
        raise BagFileError(f"{name}: not XML: {error}") from error
    if path:
        raise BagFileError(f"{name}: ends in the middle")


def local(tag: str) -> str:
    """A name without its namespace."""
    return tag.rpartition("}")[2]


def find(element: Element, name: str) -> Element | None:
    """The first descendant with a local name."""
    return next((inner for inner in element.iter() if local(inner.tag) == name), None)


def text(element: Element, name: str) -> str:
    """The text of the first descendant with a local name. Raises BagFileError if there is none."""
    found = find(element, name)
    if found is None or not (found.text or "").strip():
        raise BagFileError(f"{local(element.tag)} without {name}")
    return (found.text or "").strip()


def read(element: Element) -> Any:
    """What an element says: a string, or a dict of its children."""
    children = list(element)
    if _is_gml(element):
        return "".join(_gml(element, top=True))
    for attribute, value in element.attrib.items():
        if local(attribute) == "href":
            return value.rpartition(".")[2]
    if not children:
        return (element.text or "").strip()
    if local(element.tag) == "identificatie":
        return text(element, "lokaalID")
    if _is_wrapper(children):
        inner = [read(child) for child in children]
        return inner if local(element.tag) in _REPEATABLE or len(inner) > 1 else inner[0]
    return read_children(element)


def read_children(element: Element) -> dict[str, Any]:
    """The children by name; those that may occur more than once are lists."""
    said: dict[str, Any] = {}
    for child in element:
        name, value = local(child.tag), read(child)
        if name not in said:
            said[name] = value if name not in _REPEATABLE or isinstance(value, list) else [value]
        else:
            said[name] = (said[name] if isinstance(said[name], list) else [said[name]]) + [value]
    return said


def _is_wrapper(children: list[Element]) -> bool:
    """GML's object-property pattern: a property (lower case) holds the object (upper case) that it is about."""
    return all(local(child.tag)[:1].isupper() for child in children)


def _is_gml(element: Element) -> bool:
    return element.tag.startswith("{http://www.opengis.net/gml")


def _gml(element: Element, *, top: bool) -> Iterator[str]:
    namespace, _, name = element.tag[1:].rpartition("}")
    attributes = [f" {_prefixed(key)}={quoteattr(value)}" for key, value in element.attrib.items()]
    declared = f" xmlns:gml={quoteattr(namespace)}" if top else ""
    yield f"<gml:{name}{declared}{''.join(attributes)}>{escape((element.text or '').strip())}"
    for child in element:
        yield from _gml(child, top=False)
    yield f"</gml:{name}>"


def _prefixed(key: str) -> str:
    return f"gml:{local(key)}" if key.startswith("{http://www.opengis.net/gml") else local(key)


class _Prologue:
    """Refuses a document type, which XML allows before the first element only; looks no further than that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._done = False
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._end

    def feed(self, chunk: bytes) -> None:
        if not self._done:
            try:
                self._parser.Parse(chunk, False)
            except expat.ExpatError as error:
                raise BagFileError(f"{self._name}: not XML: {error}") from error

    def _refuse(self, *_: object) -> None:
        raise BagFileError(f"{self._name}: a document type is not allowed")

    def _end(self, *_: object) -> None:
        self._done = True
