"""The bodies of the management API: what goes in and what comes out, after the Dutch Notification API.

Input refuses unknown fields. Members that only we set (`id`, `url`, `status`, …) may stand in a replacement as they
were read, and are ignored there. Output leaves out what the Notification API doesn't know as nullable.
"""

from schemas.resources.base import DOMAIN_PATTERN, GRANT_TYPE_PATTERN, Page, Resource
from schemas.resources.registries import (
    Domain,
    DomainBody,
    DomainPage,
    Grant,
    GrantBody,
    GrantPage,
    Key,
    KeyBody,
    KeyCreated,
    KeyPage,
    Organisation,
    OrganisationBody,
    OrganisationPage,
    OrganisationPatch,
)
from schemas.resources.subscriptions import (
    Health,
    HttpSettings,
    Ordering,
    Protocol,
    RetryPolicy,
    RotatedSecret,
    SecretRotation,
    Status,
    Subscription,
    SubscriptionBody,
    SubscriptionCreated,
    SubscriptionPage,
    SubscriptionPatch,
    SubscriptionReplacement,
)

__all__ = [
    "DOMAIN_PATTERN",
    "GRANT_TYPE_PATTERN",
    "Domain",
    "DomainBody",
    "DomainPage",
    "Grant",
    "GrantBody",
    "GrantPage",
    "Health",
    "HttpSettings",
    "Key",
    "KeyBody",
    "KeyCreated",
    "KeyPage",
    "Ordering",
    "Organisation",
    "OrganisationBody",
    "OrganisationPage",
    "OrganisationPatch",
    "Page",
    "Protocol",
    "Resource",
    "RetryPolicy",
    "RotatedSecret",
    "SecretRotation",
    "Status",
    "Subscription",
    "SubscriptionBody",
    "SubscriptionCreated",
    "SubscriptionPage",
    "SubscriptionPatch",
    "SubscriptionReplacement",
]
