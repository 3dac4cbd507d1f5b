"""Which event types a name covers: domains, and the patterns that grants are written in.

A domain covers a type when it is a prefix of it by labels (`nl.bag` covers `nl.bag.pand-gewijzigd`, not
`nl.bagage.zoek`). A pattern is one exact type, or everything within a domain (`nl.bag.*`). Values are case-sensitive.
"""

from collections.abc import Collection, Iterable


def domains_of(event_type: str) -> list[str]:
    """Returns the names of the domains that would cover a type, longest first, the type itself included."""
    labels = event_type.split(".")
    return [".".join(labels[:count]) for count in range(len(labels), 0, -1)]


def within(name: str, domain: str) -> bool:
    """Tells whether a type or domain lies in a domain."""
    return name == domain or name.startswith(domain + ".")


def patterns_covering(event_type: str) -> set[str]:
    """Returns every pattern that covers a type."""
    return {event_type, *(f"{domain}.*" for domain in domains_of(event_type)[1:])}


def domain_of_pattern(pattern: str) -> str:
    """Returns what a pattern covers as a name: the domain of `nl.bag.*`, or the exact type itself."""
    return pattern.removesuffix(".*")


def overlaps(patterns: Iterable[str], *, types: Collection[str], domain: str | None) -> bool:
    """Tells whether some type could be covered by a pattern and be asked for by a subscription.

    `types` empty and `domain` None ask for everything.
    """
    wanted = [event_type for event_type in types if domain is None or within(event_type, domain)]
    for pattern in patterns:
        if types:
            if any(pattern in patterns_covering(event_type) for event_type in wanted):
                return True
        elif domain is None or within(domain_of_pattern(pattern), domain):
            return True
        elif pattern.endswith(".*") and within(domain, domain_of_pattern(pattern)):
            return True
    return False
