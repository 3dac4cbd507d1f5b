"""The rules for context attributes: CloudEvents 1.0.2 and the NL GOV profile 1.1.

What either text says an event MUST do is checked here and refused under a code from `REJECTION_CODES`. What it
SHOULD do is accepted, and reported under a code from `WARNING_CODES`, as far as a machine can tell; that a
registry has no better id than a UUID, or that `time` is the time of registration, only people can judge.

    InvalidEvent(ValueError)    the event breaks a MUST; `code` is for counting, `detail` for the registry to read

Neither codes nor details contain a value from the event: they may be logged.
"""

import re
from calendar import monthrange
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from schemas.identifiers import is_kvk, is_oin

AttributeValue = str | int | bool

RejectionCode = Literal[
    "attribute-characters-invalid",  # control characters, noncharacters, lone surrogates
    "attribute-empty",
    "attribute-name-invalid",
    "attribute-type-invalid",
    "data-and-data-base64",
    "data-base64-invalid",
    "data-not-json",  # binary mode: the content type promises JSON
    "datacontenttype-invalid",
    "dataref-not-uri-reference",
    "dataschema-not-absolute",
    "duplicate-member",
    "event-format-unsupported",
    "missing-attribute",
    "nested-too-deeply",
    "not-an-array",
    "not-an-object",
    "not-json",
    "not-utf8",
    "sequence-invalid",
    "source-not-uri-reference",
    "specversion-unsupported",
    "time-invalid",
    "too-large",
    "type-not-reverse-domain",
    "type-version-invalid",
]
WarningCode = Literal[
    "attribute-name-long",  # over 20 characters
    "datacontenttype-not-json",
    "id-not-uuid",
    "reserved-attribute-replaced",
    "source-not-urn-nld",
    "source-without-organisation",  # neither an OIN nor a KvK number
    "source-without-system",
]
REJECTION_CODES: frozenset[str] = frozenset(get_args(RejectionCode))
WARNING_CODES: frozenset[str] = frozenset(get_args(WarningCode))

NOTIFICATION_API_NAME = "subscriberReference"
"""What the draft of the Dutch Notification API calls one of them. No CloudEvents name, so it is never passed on."""
RESERVED_NAMES = frozenset({"subscription", "subscriptionsequence", "subscriberreference", NOTIFICATION_API_NAME})
"""Extensions that Bode adds to every notification. An event may hold each name once and a receiver builds its proof
of completeness on them, so those of a publisher are dropped, with a warning."""

_TEXT_NAMES = frozenset(
    {
        "id", "source", "specversion", "type", "subject", "time", "dataschema", "datacontenttype",
        "dataref", "sequence", "sequencetype",
    }
)  # fmt: skip
_NEVER_EMPTY = _TEXT_NAMES - {"dataref"}
_INTEGER_LIMIT = 2**31


class InvalidEvent(ValueError):
    """An event that breaks a MUST."""

    def __init__(self, code: RejectionCode, detail: str, attribute: str | None = None) -> None:
        """`code` is one of `REJECTION_CODES`; `attribute` names the one at fault, if it is one."""
        super().__init__(code, detail, attribute)
        self.code: str = code
        self.detail = detail
        self.attribute = attribute

    def __str__(self) -> str:
        """All three, for a log line."""
        where = f" ({self.attribute})" if self.attribute else ""
        return f"{self.code}{where}: {self.detail}"


class Names(NamedTuple):
    """What a set of attribute names says, whatever the values."""

    names: tuple[str, ...]
    length: int
    warnings: tuple[WarningCode, ...]
    reserved: bool
    rare: bool


_NAME = re.compile(r"[a-z0-9]+")


@lru_cache(maxsize=4096)
def check_names(names: tuple[str, ...]) -> Names:
    """Raises InvalidEvent. Remembered for each set of names, of which there are about as many as event types."""
    for name in names:
        if name == "data" or (_NAME.fullmatch(name) is None and name != NOTIFICATION_API_NAME):
            shown = name[:40].encode("ascii", "backslashreplace").decode()
            raise InvalidEvent("attribute-name-invalid", "a name consists of the letters a-z and digits", shown)
    return Names(
        names=names,
        length=sum(map(len, names)),
        warnings=("attribute-name-long",) if any(len(name) > 20 for name in names) else (),
        reserved=not RESERVED_NAMES.isdisjoint(names),
        rare=not {"dataref", "sequence", "sequencetype"}.isdisjoint(names),
    )


def check_types(known: Names, values: Iterable[object]) -> dict[str, AttributeValue]:
    """The attributes that are set, nulls left out: strings, booleans, whole numbers of 32 bits. Raises InvalidEvent."""
    attributes: dict[str, AttributeValue] = {}
    for name, value in zip(known.names, values, strict=True):
        if isinstance(value, str):
            attributes[name] = value
        elif value is not None:
            attributes[name] = _check_number(name, value)
    return attributes


def check_values(
    known: Names, attributes: dict[str, AttributeValue], *, plain: bool = False
) -> tuple[WarningCode, ...]:
    """The SHOULDs that the attributes don't meet; reserved names are taken out. Raises InvalidEvent.

    `plain` promises that no value holds anything but printable ASCII, so that the search for characters that
    CloudEvents disallows can be left out.
    """
    if not plain:
        _check_characters(attributes)
    if "" in attributes.values():
        for name in _NEVER_EMPTY & attributes.keys():
            if attributes[name] == "":
                raise InvalidEvent("attribute-empty", "must not be empty", name)
    try:
        id_, source, type_ = attributes["id"], attributes["source"], attributes["type"]
        version = attributes["specversion"]
    except KeyError as missing:
        raise InvalidEvent("missing-attribute", "is required", missing.args[0]) from None
    if version != "1.0":
        raise InvalidEvent("specversion-unsupported", 'must be "1.0"', "specversion")
    warnings = known.warnings + _check_repeating(
        source, type_, attributes.get("dataschema"), attributes.get("datacontenttype")
    )
    if _UUID.fullmatch(str(id_)) is None:
        warnings += ("id-not-uuid",)
    if (time := attributes.get("time")) is not None and not is_rfc3339(str(time)):
        raise InvalidEvent("time-invalid", "must be a date and time as in RFC 3339, with an offset", "time")
    if known.rare:
        _check_rare(attributes)
    if known.reserved:
        for name in RESERVED_NAMES & attributes.keys():
            del attributes[name]
            warnings += ("reserved-attribute-replaced",)
    return tuple(dict.fromkeys(warnings)) if len(warnings) > 1 else warnings


def _check_number(name: str, value: object) -> int | bool:
    if name not in _TEXT_NAMES:
        if value is True or value is False:
            return value
        if isinstance(value, int) and -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            return value
    expected = "a string" if name in _TEXT_NAMES else "a string, a boolean or a whole number of 32 bits"
    raise InvalidEvent("attribute-type-invalid", f"must be {expected}", name)


_DISALLOWED = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)


def _check_characters(attributes: dict[str, AttributeValue]) -> None:
    for name, value in attributes.items():
        if isinstance(value, str) and not (value.isascii() and value.isprintable()) and _DISALLOWED.search(value):
            raise InvalidEvent("attribute-characters-invalid", "holds a control character or noncharacter", name)


_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_REVERSE_DOMAIN = re.compile(rf"[A-Za-z]{{2,63}}(?:\.{_LABEL})+")
_VERSION = re.compile(r"[vV][0-9]+")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(
    rf'{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"))*[ \t]*;?'
)
_URN_NLD = re.compile(r"urn:nld:(?:(?P<kind>oin|kvk(?:nr|nummer)?):(?P<number>[^:./]*))?(?P<rest>.*)", re.I | re.S)

_ESCAPE = "%[0-9A-Fa-f]{2}"
_UNRESERVED = r"A-Za-z0-9\-._~!$&'()*+,;="
_AUTHORITY = (
    rf"//(?:(?:[{_UNRESERVED}:]|{_ESCAPE})*+@)?(?:\[[0-9A-Za-z:.]+\]|(?:[{_UNRESERVED}]|{_ESCAPE})*+)(?::[0-9]*)?"
)
_PCHAR = rf"(?:[{_UNRESERVED}:@]|{_ESCAPE})"
_HIERARCHY = rf"(?:{_AUTHORITY}(?:/{_PCHAR}*+)*+|/(?:{_PCHAR}++(?:/{_PCHAR}*+)*+)?"
_QUERY = rf"(?:\?(?:{_PCHAR}|[/?])*+)?"
_ABSOLUTE_URI = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*+:{_HIERARCHY}|{_PCHAR}++(?:/{_PCHAR}*+)*+)?{_QUERY}")
_RELATIVE = rf"{_HIERARCHY}|(?:[{_UNRESERVED}@]|{_ESCAPE})++(?:/{_PCHAR}*+)*+)?{_QUERY}"
_URI_REFERENCE = re.compile(rf"(?:{_ABSOLUTE_URI.pattern}|{_RELATIVE})(?:#(?:{_PCHAR}|[/?])*+)?")


@lru_cache(maxsize=8192)
def _check_repeating(
    source: AttributeValue,
    type_: AttributeValue,
    dataschema: AttributeValue | None,
    datacontenttype: AttributeValue | None,
) -> tuple[WarningCode, ...]:
    """Checks the attributes that are the same in event after event; remembered, bounded."""
    if _URI_REFERENCE.fullmatch(str(source)) is None:
        raise InvalidEvent("source-not-uri-reference", "must be a URI-reference as in RFC 3986", "source")
    _check_type(str(type_))
    if dataschema is not None and _ABSOLUTE_URI.fullmatch(str(dataschema)) is None:
        raise InvalidEvent("dataschema-not-absolute", "must be an absolute URI (RFC 3986, 4.3)", "dataschema")
    warnings = _source_warnings(str(source))
    if datacontenttype is not None:
        if _MEDIA_TYPE.fullmatch(str(datacontenttype)) is None:
            raise InvalidEvent("datacontenttype-invalid", "must be a media type as in RFC 2046", "datacontenttype")
        if not is_json(str(datacontenttype)):
            warnings += ("datacontenttype-not-json",)
    return warnings


def _check_type(type_: str) -> None:
    """Profile, `type`: reverse domain notation, and at most one version, one number after a `v`.

    The length is that of a domain name (RFC 1035, 2.3.4); it also keeps the type within an AMQP routing key.
    """
    if len(type_) > 253 or _REVERSE_DOMAIN.fullmatch(type_) is None:
        raise InvalidEvent("type-not-reverse-domain", "must be like nl.brp.persoon-verhuisd", "type")
    labels = type_.split(".")
    versions = [following for label, following in pairwise([*labels, ""]) if _VERSION.fullmatch(label)]
    if len(versions) > 1 or any(following.isdigit() for following in versions):
        raise InvalidEvent("type-version-invalid", "a version is one number, like v2", "type")


def _source_warnings(source: str) -> tuple[WarningCode, ...]:
    """Profile, `source`: a URN `nld` that names the organisation, by OIN or KvK number, and then the system."""
    found = _URN_NLD.fullmatch(source)
    if found is None:
        return ("source-not-urn-nld",)
    warnings: tuple[WarningCode, ...] = ()
    number = found["number"] or ""
    if not (is_oin(number) if (found["kind"] or "").lower() == "oin" else is_kvk(number)):
        warnings += ("source-without-organisation",)
    rest = found["rest"] if found["kind"] else re.sub(r"^[^:./]*", "", found["rest"])
    if not rest.strip(":./"):
        warnings += ("source-without-system",)
    return warnings


def is_json(content_type: str) -> bool:
    """Whether a media type, with or without parameters, is JSON: subtype `json` or suffix `+json` (RFC 6838)."""
    return content_type.partition(";")[0].strip().lower().endswith(("/json", "+json"))


_CLOCK = r"[Tt]([01]\d|2[0-3]):([0-5]\d):"
_OFFSET = r"(?:\.\d+)?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))"
_RFC3339 = re.compile(rf"(\d{{4}})-(\d\d)-(\d\d){_CLOCK}([0-5]\d|60){_OFFSET}", re.ASCII)
_ORDINARY = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])" + f"{_CLOCK}[0-5]\\d{_OFFSET}".replace("([", "(?:["), re.ASCII
)


def is_rfc3339(text: str) -> bool:
    """RFC 3339, 5.6 and 5.7: existing days only; second 60 only where a leap second can be (the end of a UTC month)."""
    if _ORDINARY.fullmatch(text) is not None:  # most are, and it asks half the time
        return True
    found = _RFC3339.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 12 or not 1 <= int(found[3]) <= _days(int(found[1]), int(found[2])):
        return False
    return found[6] != "60" or _is_end_of_month(found)


def _days(year: int, month: int) -> int:
    return monthrange(year, month)[1]


def _is_end_of_month(found: re.Match[str]) -> bool:
    year, month, day, hour, minute = (int(found[group]) for group in range(1, 6))
    offset = timedelta(hours=int(found[8] or 0), minutes=int(found[9] or 0))
    try:
        local = datetime(year, month, day, hour, minute, tzinfo=UTC)
        following = local + timedelta(minutes=1) + (offset if found[7] == "-" else -offset)
    except (ValueError, OverflowError):  # outside of the years 1 to 9999, where no leap second was
        return False
    return (following.day, following.hour, following.minute) == (1, 0, 0)


def _check_rare(attributes: dict[str, AttributeValue]) -> None:
    """The extensions that the profile takes in: `dataref`, and `sequence` with `sequencetype`."""
    dataref = attributes.get("dataref")
    if dataref is not None and _URI_REFERENCE.fullmatch(str(dataref)) is None:
        raise InvalidEvent("dataref-not-uri-reference", "must be a URI-reference as in RFC 3986", "dataref")
    if "sequencetype" in attributes:
        if "sequence" not in attributes:
            raise InvalidEvent("missing-attribute", "is required beside sequencetype", "sequence")
        if attributes["sequencetype"] == "Integer" and not _is_integer(str(attributes["sequence"])):
            raise InvalidEvent("sequence-invalid", "sequencetype says a whole number of 32 bits", "sequence")


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,10}", text) is not None and -_INTEGER_LIMIT <= int(text) < _INTEGER_LIMIT
