"""W3C Trace Context, level 1: which trace a request belongs to."""

import re
from secrets import token_hex
from typing import Final

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def trace_id_of(traceparent: str | None) -> str:
    """Returns the trace id that a caller sent in `traceparent`; without one that is valid, a new one (section 4.3)."""
    found = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if found is None or (found[3] and traceparent is not None and traceparent.strip().startswith("00")):
        return token_hex(16)
    return found[1]
