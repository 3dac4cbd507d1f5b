"""Organisations with their keys, domains and grants as the API says them."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from schemas.resources.base import GRANT_TYPE_PATTERN, Answer, DomainName, Moment, Oin, Page, Printable, Resource


class GrantBody(Resource):
    """A registry's permission for one provider."""

    provider: Oin = Field(description="OIN of the provider.", examples=["00000001823288444000"])
    types: list[Annotated[str, Field(min_length=3, max_length=255, pattern=GRANT_TYPE_PATTERN)]] = Field(
        min_length=1,
        max_length=200,
        description="Event types in your own domains: exact, or all within a domain (`nl.bag.*`).",
        examples=[["nl.brp.persoon-verhuisd", "nl.brp.adres.*"]],
    )
    legal_basis: Annotated[Printable, Field(min_length=1, max_length=1000)] = Field(
        description="The decision or law that allows it.", examples=["Wet BRP, artikel 3.2, besluit 2026-17"]
    )
    valid_from: Moment | None = Field(default=None, description="From when it holds; absent: from now.")
    valid_until: Moment | None = Field(default=None, description="When it ends; absent: when it is revoked.")


class Grant(Answer):
    """A grant as it stands."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the grant.")
    registry: str = Field(description="OIN of the registry that gave it.", examples=["00000001823288444000"])
    provider: str = Field(description="OIN of the provider that has it.", examples=["00000001001299992000"])
    types: list[str] = Field(
        description="Event types, exact or all within a domain.",
        examples=[["nl.brp.persoon-verhuisd", "nl.brp.adres.*"]],
    )
    legal_basis: str = Field(
        description="The decision or law that allows it.", examples=["Wet BRP, artikel 3.2, besluit 2026-17"]
    )
    valid_from: datetime = Field(description="From when it holds.")
    valid_until: datetime | None = Field(description="When it ends; null: when it is revoked.")
    created_at: datetime = Field(description="When it was given.")
    revoked_at: datetime | None = Field(description="When it was revoked; null: it wasn't.")


class DomainBody(Resource):
    """A namespace of event types."""

    name: DomainName = Field(description="The name, in reverse domain notation.", examples=["nl.brp"])
    description: Annotated[str, Field(max_length=4000)] | None = Field(
        default=None,
        description="What it is about.",
        examples=["Events of the registry of persons (Basisregistratie Personen)."],
    )
    documentation_link: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s]+$")] | None = Field(
        default=None, description="Where people read about it.", examples=["https://www.rvig.nl/brp"]
    )
    filter_attributes: Annotated[
        list[Annotated[Printable, Field(min_length=1, max_length=255)]], Field(max_length=100)
    ] = Field(default=[], description="Attributes that its events can be filtered on.", examples=[["gemeentecode"]])
    organisation: Oin | None = Field(
        default=None,
        description="OIN of the owner. Only the operator names another; absent: your own organisation.",
        examples=["00000001823288444000"],
    )
    url: Any = Field(default=None, description="Ignored: set by the broker.")
    uuid: Any = Field(default=None, description="Ignored: set by the broker.")


class Domain(Answer):
    """A namespace of event types, and whose it is."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    uuid: UUID = Field(description="Identifier of the domain.")
    name: str = Field(description="The name, in reverse domain notation.", examples=["nl.brp"])
    organisation: str = Field(description="OIN of the registry that owns it.", examples=["00000001823288444000"])
    description: str | None = Field(
        default=None,
        description="What it is about.",
        examples=["Events of the registry of persons (Basisregistratie Personen)."],
    )
    documentation_link: str | None = Field(
        default=None, description="Where people read about it.", examples=["https://www.rvig.nl/brp"]
    )
    filter_attributes: list[str] = Field(
        description="Attributes that its events can be filtered on.", examples=[["gemeentecode"]]
    )


class OrganisationBody(Resource):
    """An organisation, as the operator registers it."""

    oin: Oin = Field(description="Its OIN, 20 positions.", examples=["00000001823288444000"])
    name: Annotated[Printable, Field(min_length=1, max_length=200)] = Field(
        description="Its name.", examples=["Voorbeeldregistratie"]
    )
    amqp_user: Annotated[Printable, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="RabbitMQ user that publishes for it.", examples=["brp"]
    )
    sources: Annotated[list[Annotated[Printable, Field(min_length=1, max_length=2048)]], Field(max_length=100)] = Field(
        default=[],
        description="Sources it may speak for, besides those that start with `urn:nld:oin:<its OIN>:`.",
        examples=[["urn:nld:gemeente:9999"]],
    )


class OrganisationPatch(Resource):
    """A JSON merge patch of an organisation."""

    name: Annotated[Printable, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="Its name.", examples=["Voorbeeldregistratie"]
    )
    amqp_user: Annotated[Printable, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="RabbitMQ user that publishes for it; null: none.", examples=["brp"]
    )
    sources: (
        Annotated[list[Annotated[Printable, Field(min_length=1, max_length=2048)]], Field(max_length=100)] | None
    ) = Field(
        default=None,
        description="Sources it may speak for besides its own; null: none.",
        examples=[["urn:nld:gemeente:9999"]],
    )


class Organisation(Answer):
    """An organisation: a registry, a provider, or both."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the organisation here.")
    oin: str = Field(description="Its OIN.", examples=["00000001823288444000"])
    name: str = Field(description="Its name.", examples=["Voorbeeldregistratie"])
    amqp_user: str | None = Field(description="RabbitMQ user that publishes for it.", examples=["brp"])
    sources: list[str] = Field(
        description="Sources it may speak for besides its own.", examples=[["urn:nld:gemeente:9999"]]
    )
    created_at: datetime = Field(description="When it was registered.")
    updated_at: datetime = Field(description="When it was last changed.")


OrganisationScope = Literal["events.publish", "events.consume", "registry.manage", "disclosures.read"]


class KeyBody(Resource):
    """A new API key of an organisation."""

    label: Annotated[Printable, Field(max_length=200)] = Field(
        default="", description="What it is for.", examples=["production"]
    )
    scopes: list[OrganisationScope] = Field(
        min_length=1, max_length=10, description="What it may be used for.", examples=[["events.consume"]]
    )
    expires_at: Moment | None = Field(default=None, description="When it stops working; absent: when revoked.")


class Key(Answer):
    """An API key, without the key itself."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the key.")
    hint: str = Field(description="The last characters of the key.", examples=["x7Qa"])
    label: str = Field(description="What it is for.", examples=["production"])
    scopes: list[str] = Field(description="What it may be used for.", examples=[["events.consume"]])
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime | None = Field(description="When it stops working; null: when revoked.")
    last_used_at: datetime | None = Field(description="When it was last used, to the minute; null: never.")
    revoked_at: datetime | None = Field(description="When it was revoked; null: it wasn't.")


class KeyCreated(Key):
    """A new API key, with the one showing of the key itself."""

    key: str = Field(
        description="The key, to be sent as `Authorization: Bearer <key>`. Shown now, and never again.",
        examples=["bode_Zm9yIGV4YW1wbGUgb25seSwgbm90IGEga2V5IQ"],
    )


class GrantPage(Page[Grant]):
    """One page of grants, in order of creation."""


class DomainPage(Page[Domain]):
    """One page of domains, in order of creation."""


class OrganisationPage(Page[Organisation]):
    """One page of organisations, in order of creation."""


class KeyPage(Page[Key]):
    """One page of keys, in order of creation."""
