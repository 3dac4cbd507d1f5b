"""Keyed fingerprints: what tables hold instead of subjects and of ids that may contain them (promise 10).

A plain hash of a nine-digit BSN is reversed in seconds; a keyed one isn't, as long as the key is kept. The key is fixed
for the life of an installation: another key would forget every duplicate and every lane.
"""

import hashlib
from typing import Final

KEY_BYTES: Final = 32


class Fingerprints:
    """Digests of identifying values under one installation's key."""

    __slots__ = ("_event", "_history", "_lane", "_message", "_subject")

    def __init__(self, key: bytes) -> None:
        self._event = hashlib.blake2b(key=key, digest_size=16, person=b"bode event")
        self._lane = hashlib.blake2b(key=key, digest_size=8, person=b"bode lane")
        self._message = hashlib.blake2b(key=key, digest_size=16, person=b"bode message")
        self._subject = hashlib.blake2b(key=key, digest_size=16, person=b"bode subject")
        self._history = hashlib.blake2b(key=key, digest_size=8, person=b"bode history")

    def event(self, source: str, event_id: str) -> bytes:
        """Identity of an event: `source` and `id` together (CloudEvents 1.0.2, "id")."""
        return _of(self._event, source, event_id)

    def lane(self, source: str, subject: str) -> int:
        """The lane of a subject, as a signed 64-bit number."""
        return int.from_bytes(_of(self._lane, source, subject), "big", signed=True)

    def message(self, publisher: str, body: bytes) -> bytes:
        """Identity of a message that became no event."""
        hasher = self._message.copy()
        hasher.update(publisher.encode("utf-8", "surrogatepass") + b"\0")
        hasher.update(body)
        return hasher.digest()

    def subject(self, subject: str) -> bytes:
        """Identity of a subject on follow lists."""
        hasher = self._subject.copy()
        hasher.update(subject.encode("utf-8", "surrogatepass"))
        return hasher.digest()

    def of(self, subject: str) -> int:
        """The 64-bit fingerprint of a subject on follow lists: the beginning of its digest."""
        return int.from_bytes(self.subject(subject)[:8], "big")

    def history(self, version: int, moment: str) -> int:
        """Tells one installation's change log at one version from any other: one restored, or under another key."""
        return int.from_bytes(_of(self._history, str(version), moment), "big")


def _of(template: "hashlib.blake2b", first: str, second: str) -> bytes:
    hasher = template.copy()
    head = first.encode()
    hasher.update(len(head).to_bytes(4, "big") + head + second.encode())
    return hasher.digest()
