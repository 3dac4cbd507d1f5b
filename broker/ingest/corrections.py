"""Events that correct an earlier one of the same source: extension attributes `corrects` and `correction`.

    corrects: <id of the earlier event>      correction: replace (default) | withdraw

In time is what is accepted before the delay of the corrected event's type is over. Then the deliveries that still wait
for it are cancelled in the accepting transaction, and where that was a withdrawal, it isn't delivered there either:
nobody is told of what never was. A correction that comes too late is an event like any other.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.cloudevents import Event

CORRECTS: Final = "corrects"
CORRECTION: Final = "correction"
_LONGEST_ID: Final = 200


class Kind(StrEnum):
    """What a correction does."""

    REPLACE = "replace"
    WITHDRAW = "withdraw"


class InvalidCorrection(ValueError):
    """The attributes of a correction say nothing that can be done."""

    def __init__(self, attribute: str, detail: str) -> None:
        super().__init__(detail)
        self.attribute = attribute


@dataclass(frozen=True, slots=True)
class Correction:
    """What an event says of an earlier one."""

    corrected: str
    """The `id` of that one, which has the same `source`."""
    kind: Kind
    by: str

    @property
    def reason(self) -> str:
        """Why a delivery of the corrected event is cancelled."""
        return f"{'corrected' if self.kind is Kind.REPLACE else 'withdrawn'}: by {self.by}"

    @property
    def own_reason(self) -> str:
        """Why a delivery of the correction is cancelled where nothing had been told."""
        return f"withdrawal: {_short(self.corrected)} was not delivered"


def read(event: Event) -> Correction | None:
    """What an event corrects, if it says so.

    Raises:
        InvalidCorrection: it says so in a way that can't be understood.
    """
    corrects, kind = event.attributes.get(CORRECTS), event.attributes.get(CORRECTION)
    if corrects is None and kind is None:
        return None
    if not isinstance(corrects, str) or not corrects or corrects == event.id:
        raise InvalidCorrection(CORRECTS, "must be the id of an earlier event of the same source")
    if kind is not None and kind not in tuple(Kind):
        raise InvalidCorrection(CORRECTION, "must be replace or withdraw, or absent for replace")
    return Correction(corrects, Kind(str(kind)) if kind is not None else Kind.REPLACE, _short(event.id))


def subscriptions_told(corrected: Collection[int]) -> tuple[int, ...]:
    """How a wake-up says that what is in memory of these subscriptions is out of date: by negative numbers."""
    return tuple(-subscription for subscription in corrected)


def _short(identity: str) -> str:
    return identity if len(identity) <= _LONGEST_ID else identity[: _LONGEST_ID - 1] + "…"
