"""Believable events of the base registries, about test subjects in municipality 9999 only.

Deterministic for a given `Random` and clock. The extension `gemeente` (and `rechtsvorm`, `sbi` for companies) is there
to be filtered on. Every sample is valid and meets every SHOULD of the NL GOV profile that a machine can judge.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from broker.tools.identities import SOURCES
from schemas.cloudevents import AttributeValue, Draft
from schemas.identifiers import (
    TEST_GEMEENTECODE,
    BagType,
    sample_bag_id,
    sample_bsn,
    sample_kvk,
    sample_vestigingsnummer,
    sample_woz_number,
)


class SampleType(NamedTuple):
    """An event type that can be sampled: the registry that publishes it, and what it means."""

    type: str
    registry: str
    meaning: str
    weight: int
    """How often it occurs in the stream, compared with the others."""


@dataclass(slots=True)
class _World:
    """Whom events are about: somebody new each time, or with a pool mostly somebody whom events were about before."""

    random: Random
    today: date
    pool: int = 0
    _known: dict[str, list[str]] = field(default_factory=dict)

    def _one(self, kind: str, make: Callable[[], str]) -> str:
        known = self._known.setdefault(kind, [])
        if len(known) < max(self.pool, 1):
            known.append(make())
        elif not self.pool:
            known[0] = make()
        else:
            return self.random.choice(known)
        return known[-1]

    def bsn(self) -> str:
        return self._one("bsn", lambda: sample_bsn(self.random))

    def kvk(self) -> str:
        return self._one("kvk", lambda: sample_kvk(self.random))

    def vestiging(self) -> str:
        return self._one("vestiging", lambda: sample_vestigingsnummer(self.random))

    def bag(self, type_: BagType) -> str:
        return self._one(type_.name, lambda: sample_bag_id(self.random, type_))

    def woz(self) -> str:
        return self._one("woz", lambda: sample_woz_number(self.random))

    def perceel(self) -> str:
        return self._one("perceel", lambda: f"TST99-{self.random.choice('ABCDEF')}-{self.random.randrange(1, 10_000)}")

    def day(self, back: int = 30) -> str:
        return (self.today - timedelta(days=self.random.randrange(back))).isoformat()

    def address(self) -> dict[str, str]:
        return {
            "nummeraanduiding": self.bag(BagType.NUMMERAANDUIDING),
            "openbareRuimte": self.random.choice(_STREETS),
            "huisnummer": str(self.random.randrange(1, 200)),
            "postcode": f"9999{self.random.choice('ABCDEFGH')}{self.random.choice('ABCDEFGH')}",
            "gemeente": TEST_GEMEENTECODE,
        }


_STREETS = ("Proefplein", "Testlaan", "Voorbeeldstraat", "Oefenweg", "Modelkade")
_FORMS = ("Eenmanszaak", "Besloten Vennootschap", "Vereniging", "Stichting")
_BRANCHES = {"62010": "Ontwikkelen van software", "47110": "Supermarkten", "56101": "Restaurants", "41200": "Bouw"}

_Made = tuple[str, dict[str, AttributeValue], dict[str, Any]]
_Maker = Callable[[_World], _Made]
_makers: dict[str, _Maker] = {}
_types: list[SampleType] = []


def _sample(type_: str, meaning: str, weight: int = 1) -> Callable[[_Maker], _Maker]:
    def register(maker: _Maker) -> _Maker:
        _makers[type_] = maker
        _types.append(SampleType(type_, type_.split(".")[1], meaning, weight))
        return maker

    return register


_IN_GEMEENTE: dict[str, AttributeValue] = {"gemeente": TEST_GEMEENTECODE}


@_sample("nl.brp.persoon-verhuisd", "A person's address of residence has changed", 8)
def _verhuisd(world: _World) -> _Made:
    bsn = world.bsn()
    data = {"burgerservicenummer": bsn, "datumAanvang": world.day(), "adres": world.address()}
    return bsn, _IN_GEMEENTE, data


@_sample("nl.brp.persoon-overleden", "A person has died", 2)
def _overleden(world: _World) -> _Made:
    bsn = world.bsn()
    return bsn, _IN_GEMEENTE, {"burgerservicenummer": bsn, "datumOverlijden": world.day(7)}


@_sample("nl.brp.kind-geboren", "A child was born and registered", 3)
def _geboren(world: _World) -> _Made:
    bsn = world.bsn()
    data = {"burgerservicenummer": bsn, "geboortedatum": world.day(4), "ouders": [world.bsn(), world.bsn()]}
    return bsn, _IN_GEMEENTE, data


@_sample("nl.brp.persoon-gehuwd", "A person has married or entered a registered partnership", 2)
def _gehuwd(world: _World) -> _Made:
    bsn = world.bsn()
    return bsn, _IN_GEMEENTE, {"burgerservicenummer": bsn, "datumSluiting": world.day(), "partner": world.bsn()}


def _company(world: _World) -> tuple[str, dict[str, AttributeValue]]:
    extensions: dict[str, AttributeValue] = {
        "gemeente": TEST_GEMEENTECODE,
        "rechtsvorm": world.random.choice(_FORMS),
        "sbi": world.random.choice(list(_BRANCHES)),
    }
    return world.kvk(), extensions


@_sample("nl.hr.onderneming-ingeschreven", "A company was entered in the trade register", 5)
def _ingeschreven(world: _World) -> _Made:
    kvk, extensions = _company(world)
    activity = {"sbi": extensions["sbi"], "omschrijving": _BRANCHES[str(extensions["sbi"])]}
    data = {
        "kvkNummer": kvk,
        "rechtsvorm": extensions["rechtsvorm"],
        "datumAanvang": world.day(),
        "activiteit": activity,
    }
    return kvk, extensions, data


@_sample("nl.hr.onderneming-opgeheven", "A company has ended", 3)
def _opgeheven(world: _World) -> _Made:
    kvk, extensions = _company(world)
    return kvk, extensions, {"kvkNummer": kvk, "datumEinde": world.day()}


@_sample("nl.hr.vestiging-verhuisd", "An establishment has moved to another address", 3)
def _vestiging(world: _World) -> _Made:
    kvk, extensions = _company(world)
    number = world.vestiging()
    return number, extensions, {"vestigingsnummer": number, "kvkNummer": kvk, "adres": world.address()}


@_sample("nl.bag.pand-gebouwd", "A building is finished and in use", 3)
def _gebouwd(world: _World) -> _Made:
    pand = world.bag(BagType.PAND)
    data = {"identificatie": pand, "oorspronkelijkBouwjaar": str(world.today.year), "status": "Pand in gebruik"}
    return pand, _IN_GEMEENTE, data


@_sample("nl.bag.pand-gesloopt", "A building was demolished", 1)
def _gesloopt(world: _World) -> _Made:
    pand = world.bag(BagType.PAND)
    return pand, _IN_GEMEENTE, {"identificatie": pand, "status": "Pand gesloopt", "documentdatum": world.day()}


@_sample("nl.bag.nummeraanduiding-vastgesteld", "An address was assigned", 4)
def _vastgesteld(world: _World) -> _Made:
    address = world.address()
    return address["nummeraanduiding"], _IN_GEMEENTE, {"status": "Naamgeving uitgegeven", "adres": address}


@_sample("nl.bag.verblijfsobject-gevormd", "A dwelling or other unit of use was formed", 3)
def _gevormd(world: _World) -> _Made:
    unit = world.bag(BagType.VERBLIJFSOBJECT)
    data = {
        "identificatie": unit,
        "gebruiksdoel": [world.random.choice(["woonfunctie", "winkelfunctie", "kantoorfunctie"])],
        "oppervlakte": str(world.random.randrange(20, 300)),
        "maaktDeelUitVan": [world.bag(BagType.PAND)],
    }
    return unit, _IN_GEMEENTE, data


@_sample("nl.woz.waarde-vastgesteld", "The value of a property was set for a year", 6)
def _waarde(world: _World) -> _Made:
    number = world.woz()
    value = world.random.randrange(120, 900) * 1000
    data = {"wozObjectNummer": number, "vastgesteldeWaarde": value, "waardepeildatum": f"{world.today.year - 1}-01-01"}
    return number, _IN_GEMEENTE, data


@_sample("nl.woz.waarde-herzien", "The value of a property was revised after an objection", 1)
def _herzien(world: _World) -> _Made:
    number = world.woz()
    value = world.random.randrange(120, 900) * 1000
    return number, _IN_GEMEENTE, {"wozObjectNummer": number, "vastgesteldeWaarde": value, "reden": "bezwaar"}


@_sample("nl.brk.eigendom-overgedragen", "A parcel has a new owner", 4)
def _overgedragen(world: _World) -> _Made:
    parcel = world.perceel()
    data = {"kadastraleAanduiding": parcel, "datumInschrijving": world.day(), "verkrijgers": [world.bsn()]}
    return parcel, _IN_GEMEENTE, data


@_sample("nl.brk.perceel-gesplitst", "A parcel was divided", 1)
def _gesplitst(world: _World) -> _Made:
    parcel = world.perceel()
    return parcel, _IN_GEMEENTE, {"kadastraleAanduiding": parcel, "delen": world.random.randrange(2, 5)}


CATALOGUE: tuple[SampleType, ...] = tuple(_types)
"""Everything that can be sampled, by registry."""


def sample(type_: str, source: str, random: Random, clock: Callable[[], datetime]) -> Draft:
    """One event of a type in `CATALOGUE`, about a new test subject. Raises KeyError for another type.

    `clock` gives aware times; `time` is the time of registration: now.
    """
    now = clock()
    return _draft(type_, source, _World(random, now.date()), now)


def stream(
    random: Random, clock: Callable[[], datetime], sources: Mapping[str, str] = SOURCES, *, pool: int = 50
) -> Iterator[Draft]:
    """Events without end, of the registries in `sources`, about `pool` subjects of each kind, so that they recur."""
    types = [kind for kind in CATALOGUE if kind.registry in sources]
    weights = [kind.weight for kind in types]
    world = _World(random, clock().date(), pool)
    while True:
        [kind] = random.choices(types, weights)
        now = clock()
        world.today = now.date()
        yield _draft(kind.type, sources[kind.registry], world, now)


def _draft(type_: str, source: str, world: _World, now: datetime) -> Draft:
    subject, extensions, data = _makers[type_](world)
    attributes: dict[str, AttributeValue] = {
        "specversion": "1.0",
        "id": str(UUID(int=world.random.getrandbits(128), version=4)),
        "source": source,
        "type": type_,
        "subject": subject,
        "time": now.isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
    }
    return Draft(attributes | extensions, data)
