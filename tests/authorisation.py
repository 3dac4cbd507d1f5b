"""Who may do what: one row for each operation of the OpenAPI document; the scopes are those that it declares.

A row says what the right caller, an organisation to which it doesn't belong, and the operator are answered. Nobody
without a key gets past 401, and nobody with other scopes past 403: that goes for every operation, so no row says it.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

Owner = Literal["provider", "registry", "operator", "anyone"]
Body = dict[str, Any]

OWN_ONLY: Final = "own only"
"""200, with nothing in it that belongs to another."""


@dataclass(frozen=True)
class Row:
    """One operation. Names in braces are filled in with ids of what was made for the test."""

    path: str
    owner: Owner
    right: int = 200
    stranger: int | str = 404
    operator: int | str = 403
    body: Any = None
    prepare: str = ""
    """What the operation uses up, and is made for each call of it that should succeed."""


_SINK: Final = {"sink": "https://afnemer.example.nl/hook", "protocol": "HTTP"}
_TYPE: Final = {"type": "{domain}.{fresh}", "meaning": "Iets.", "timeMeaning": "Wanneer."}
_HOLD: Final = {"scope": "event-type", "value": "{domain}.{fresh}", "reason": "Fout."}

MATRIX: Final[dict[str, Row]] = {
    "publishEvents": Row("/events", "registry", right=202, stranger=403, body="event"),
    "listRejections": Row("/rejections", "registry", stranger=OWN_ONLY, operator=200),
    "listDeadLetters": Row("/dead-letters", "provider", stranger=OWN_ONLY, operator=200),
    "getDeadLetter": Row("/dead-letters/{delivery}", "provider", right=404, operator=404),
    "retryDeadLetter": Row("/dead-letters/{delivery}/retries", "provider", right=404, operator=404),
    "discardDeadLetter": Row(
        "/dead-letters/{delivery}/discards", "provider", right=404, operator=404, body={"reason": "Oud."}
    ),
    "retryDeadLetters": Row("/subscriptions/{subscription}/dead-letters/retries", "provider", operator=200, body={}),
    "discardDeadLetters": Row(
        "/subscriptions/{subscription}/dead-letters/discards", "provider", operator=200, body={"because": "Oud."}
    ),
    "startReplay": Row(
        "/subscriptions/{subscription}/replays", "provider", right=409, body={"firstSequence": 1}
    ),
    "listReplays": Row("/subscriptions/{subscription}/replays", "provider", operator=200),
    "getReplay": Row(
        "/subscriptions/{subscription}/replays/{subscription}", "provider", right=404, operator=404
    ),
    "cancelReplay": Row(
        "/subscriptions/{subscription}/replays/{subscription}", "provider", right=404, operator=404
    ),
    "reconcile": Row("/subscriptions/{subscription}/reconciliation", "provider", operator=200),
    "pullEvents": Row("/subscriptions/{subscription}/events", "provider"),
    "getCursor": Row("/subscriptions/{subscription}/cursor", "provider"),
    "acknowledge": Row("/subscriptions/{subscription}/cursor", "provider", body={"cursor": "{cursor}"}),
    "traceEvent": Row("/traces/{event}", "registry", operator=200),
    "createSubscription": Row("/subscriptions", "provider", right=201, stranger=201, body=_SINK),
    "listSubscriptions": Row("/subscriptions", "provider", stranger=OWN_ONLY, operator=200),
    "getSubscription": Row("/subscriptions/{subscription}", "provider", operator=200),
    "replaceSubscription": Row("/subscriptions/{subscription}", "provider", body=_SINK),
    "changeSubscription": Row("/subscriptions/{subscription}", "provider", body={"ordering": "none"}),
    "endSubscription": Row("/subscriptions/{subscription}", "provider", right=204, prepare="subscription"),
    "rotateSecret": Row("/subscriptions/{subscription}/secret", "provider", body={}),
    "listSubscriptionHistory": Row("/subscriptions/{subscription}/history", "provider", operator=200),
    "sendTestNotification": Row("/subscriptions/{subscription}/test-notifications", "provider", right=409),
    "getTestNotification": Row(
        "/subscriptions/{subscription}/test-notifications/{subscription}", "provider", right=404
    ),
    "previewSubscription": Row("/subscription-previews", "provider", stranger=200, body={"days": 1}),
    "listSubscriptionRequests": Row("/subscription-requests", "registry", stranger=OWN_ONLY),
    "getSubscriptionRequest": Row("/subscription-requests/{request}", "registry"),
    "approveSubscription": Row(
        "/subscription-requests/{request}/approvals", "registry", right=201, body={"legalBasis": "wet"},
        prepare="request",
    ),
    "refuseSubscription": Row(
        "/subscription-requests/{request}/refusals", "registry", body={"reason": "Nee."}, prepare="request"
    ),
    "createGrant": Row(
        "/grants", "registry", right=201, stranger=403,
        body={"provider": "{provider_oin}", "types": ["{domain}.a"], "legalBasis": "wet"},
    ),
    "listGrants": Row("/grants", "registry", stranger=OWN_ONLY, operator=200),
    "getGrant": Row("/grants/{grant}", "registry", operator=200),
    "revokeGrant": Row("/grants/{grant}", "registry", right=204, prepare="grant"),
    "placeHold": Row("/holds", "registry", right=201, stranger=403, operator=201, body=_HOLD),
    "listHolds": Row("/holds", "registry", stranger=OWN_ONLY, operator=200),
    "getHold": Row("/holds/{hold}", "registry", operator=200),
    "releaseHold": Row("/holds/{hold}/release", "registry", operator=200, body={}, prepare="hold"),
    "cancelHold": Row(
        "/holds/{hold}/cancellation", "registry", right=202, operator=202, body={"reason": "Fout."}, prepare="hold"
    ),
    "listDomains": Row("/domains", "anyone", stranger=200, operator=200),
    "createDomain": Row(
        "/domains", "registry", right=201, stranger=409, operator=400, body={"name": "{domain}.{fresh}"}
    ),
    "getDomain": Row("/domains/{domain_id}", "anyone", stranger=200, operator=200),
    "describeEventType": Row("/event-types", "registry", right=201, stranger=403, body=_TYPE),
    "listEventTypes": Row("/event-types", "anyone", stranger=200, operator=200),
    "getEventType": Row("/event-types/{event_type}", "anyone", stranger=200, operator=200),
    "replaceEventType": Row(
        "/event-types/{event_type}", "registry", stranger=403, body={**_TYPE, "type": "{type}"}
    ),
    "withdrawEventType": Row("/event-types/{event_type}", "registry", right=204, stranger=403, prepare="event_type"),
    "listEventTypeVersions": Row("/event-types/{event_type}/versions", "anyone", stranger=200, operator=200),
    "listDataFindings": Row("/event-types/{event_type}/findings", "registry", stranger=403, operator=200),
    "createOrganisation": Row(
        "/organisations", "operator", right=201, operator=201, body={"oin": "{fresh_oin}", "name": "Nieuw"}
    ),
    "listOrganisations": Row("/organisations", "provider", stranger=OWN_ONLY, operator=200),
    "getOrganisation": Row("/organisations/{provider}", "provider", operator=200),
    "changeOrganisation": Row("/organisations/{provider}", "operator", operator=200, body={"name": "Anders"}),
    "createKey": Row(
        "/organisations/{provider}/keys", "operator", right=201, operator=201, body={"scopes": ["events.consume"]}
    ),
    "listKeys": Row("/organisations/{provider}/keys", "operator", operator=200),
    "getKey": Row("/organisations/{provider}/keys/{key}", "operator", operator=200),
    "revokeKey": Row("/organisations/{provider}/keys/{key}", "operator", right=204, operator=204, prepare="key"),
    "consentByLink": Row("/handshakes/{token}", "anyone", right=404, operator=404),
    "consentByCallback": Row("/handshakes/{token}", "anyone", right=404, operator=404),
}  # fmt: skip
