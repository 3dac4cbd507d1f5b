#!/usr/bin/env python3
"""A receiver of Bode's notifications, to copy and make your own. Python 3.11, standard library only.

    python receiver.py --secret whsec_… [--port 8080] [--database notifications.db]
    python receiver.py --reconcile https://…/v1/subscriptions/<id> --key bode_… [--database notifications.db]

What every receiver needs to do, and where it is done here:

1. Consent:     answer the webhook handshake (OPTIONS), or nothing will be sent.           -> do_OPTIONS
2. Verify:      check the signature over the exact bytes, before reading anything in them. -> verify
3. Store once:  a notification can come twice; its number tells. Store it, then answer.    -> Store.add
4. Answer soon: 204 after the commit, within ten seconds; do the work afterwards.          -> do_POST
   In a batch, if you asked for those, the answer holds for every item: commit all or none. -> read, Store.add
5. Look:        numbers run from 1 without gaps, so what is missing can be seen.           -> Store.missing
                A heartbeat, if you asked for them, tells the last number: a missing tail. -> do_POST
6. Prove:       now and then compare digests of what is stored with those of Bode.         -> reconcile

The order in which notifications of one subject arrive is the order in which they happened. Those of different subjects
overtake each other, so a gap that closes by itself within seconds is normal.
"""

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import sqlite3
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE_SECONDS = 5 * 60
LARGEST_BODY = 4 * 1024 * 1024  # as large as a batch can be
BATCH = "application/cloudevents-batch+json"
HEARTBEAT = "nl.bode.heartbeat"
TEST = "nl.bode.test-notification"


def verify(secrets, headers, body, now):
    """Tell whether a Standard Webhooks signature is right. Several secrets: while the old one still signs too."""
    identity = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not (identity and timestamp.isascii() and timestamp.isdigit()):
        return False
    if abs(now - int(timestamp[:20])) > TOLERANCE_SECONDS:
        return False  # someone repeats what was sent long ago
    signed = f"{identity}.{timestamp}.".encode() + body
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = hmac.new(key, signed, hashlib.sha256).digest()
        for signature in headers.get("webhook-signature", "").split():
            version, _, encoded = signature.partition(",")
            try:
                given = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                continue
            if version == "v1" and hmac.compare_digest(given, expected):
                return True
    return False


def read(content_type, body):
    """The events in a request, one or those of a batch, as (number, subscription, event, text).

    Heartbeats and tests have no number. Anything else is a ValueError, KeyError or TypeError, also where the rest of a
    batch would do: it is refused as a whole, and Bode finds what was meant by sending the halves.
    """
    content, events = json.loads(body), []
    if content_type == BATCH and not (isinstance(content, list) and content):
        raise ValueError("a batch is an array with something in it")
    for event in content if content_type == BATCH else [content]:
        number = None
        if event["type"] == HEARTBEAT and "subscriptionsequence" not in event:
            int(event["data"]["lastSequence"])
        elif event["type"] != TEST or "subscriptionsequence" in event:
            number = int(event["subscriptionsequence"])
            if not 0 < number < 1 << 63:
                raise ValueError("numbers run from 1, and SQLite's end there")
        text = json.dumps(event) if content_type == BATCH else body.decode()
        events.append((number, event["subscription"], event, text))
    return events


class Store:
    """Notifications in SQLite, each once by its subscription and number."""

    def __init__(self, path):
        # it may hold personal data: for its owner only
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS notifications (subscription TEXT, sequence INTEGER, event TEXT NOT NULL,"
            " received_at REAL NOT NULL, PRIMARY KEY (subscription, sequence)) WITHOUT ROWID"
        )

    def add(self, notifications):
        """Commit notifications (subscription, sequence, event), all or none; tell which were here already."""
        again = set()
        with self._lock, self._database:
            self._database.execute("BEGIN")
            for subscription, sequence, event in notifications:
                done = self._database.execute(
                    "INSERT INTO notifications VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (subscription, sequence, event, time.time()),
                )
                if done.rowcount == 0:
                    again.add((subscription, sequence))
        return again

    def missing(self, subscription, last=0):
        """The gaps from number 1 to the highest received, or to `last` if that is higher, as (first, last)."""
        with self._lock:
            gaps = self._database.execute(
                "SELECT previous + 1, sequence - 1 FROM (SELECT sequence, lag(sequence, 1, 0) OVER (ORDER BY sequence)"
                " AS previous FROM notifications WHERE subscription = ?) WHERE sequence > previous + 1",
                (subscription,),
            ).fetchall()
            [highest] = self._database.execute(
                "SELECT coalesce(max(sequence), 0) FROM notifications WHERE subscription = ?", (subscription,)
            ).fetchone()
        return gaps + ([(highest + 1, last)] if last > highest else [])

    def between(self, subscription, first, last):
        """The events of a range by number."""
        with self._lock:
            rows = self._database.execute(
                "SELECT sequence, event FROM notifications WHERE subscription = ? AND sequence BETWEEN ? AND ?",
                (subscription, first, last),
            )
            return {sequence: json.loads(event) for sequence, event in rows}


def digest(events):
    """The digest of a block, from the notifications by number, as Bode defines it."""
    hasher = hashlib.sha256()
    for number in sorted(events):
        mark = hashlib.sha256(f"{events[number]['source']}\n{events[number]['id']}".encode()).hexdigest()
        hasher.update(f"{number} {mark}\n".encode())
    return hasher.hexdigest()


def reconcile(store, url, key):
    """Compare what is stored with what Bode delivered: the last number, what is wrong, and what need not be here."""
    wrong, not_delivered, answer = [], [], {"next": f"{url}/reconciliation?from=1"}
    while answer["next"]:
        request = urllib.request.Request(answer["next"], headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        not_delivered += answer["tombstones"]
        elsewhere = {n for stone in answer["tombstones"] for n in range(stone["from"], stone["to"] + 1)}
        for block in answer["blocks"]:
            stored = store.between(answer["subscription"], block["from"], block["to"])
            delivered = set(range(block["from"], block["to"] + 1)) - elsewhere
            missing = sorted(delivered - stored.keys())
            if missing:
                wrong.append(f"missing: {', '.join(map(str, missing))}")
            elif digest({n: stored[n] for n in delivered}) != block["digest"]:
                wrong.append(f"not what was sent: something from {block['from']} to {block['to']}")
    return answer["lastSequence"], wrong, not_delivered


class Handler(BaseHTTPRequestHandler):
    """Answers Bode. One instance for each connection."""

    protocol_version = "HTTP/1.1"  # keeps connections open: much faster
    timeout = 60

    def do_OPTIONS(self):
        origin = self.headers.get("WebHook-Request-Origin", "")
        if not origin or (self.server.origin and origin != self.server.origin):
            self.answer(403)
            return
        self.answer(200, {"Allow": "POST", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"})

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > LARGEST_BODY:
            self.close_connection = True  # the body was not read
            self.answer(413)
            return
        body = self.rfile.read(int(length))
        if not verify(self.server.secrets, self.headers, body, time.time()):
            self.answer(401)
            return
        try:
            events = read(self.headers.get_content_type(), body)
        except (ValueError, KeyError, TypeError):
            self.answer(400)
            return
        store = self.server.store
        again = store.add([(subscription, number, text) for number, subscription, _, text in events if number])
        self.answer(204)
        # no subjects and no data here: logs are read by others
        lines, last, complete = [], 0, ""
        for number, subscription, event, _ in events:
            if number:
                lines.append(f"#{number} {event['type']}{' (again)' if (subscription, number) in again else ''}")
            elif event["type"] == TEST:
                lines.append("test notification")
            else:  # nothing to store: it says how far the numbers go
                last, complete = int(event["data"]["lastSequence"]), ", nothing missing"
                lines.append(f"heartbeat: last {last}")
        # a request is about one subscription, also when it is a batch
        gaps = ", ".join(f"{first}-{end}" for first, end in store.missing(subscription, last))
        said = "\n".join(lines) + (f", missing {gaps}" if gaps else complete)
        print(said + "\n", end="", flush=True)  # in one piece: other threads print too

    def answer(self, status, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *arguments):
        """Be silent: do_POST says what there is to say."""


class Receiver(ThreadingHTTPServer):
    """The server, with what its handlers share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, secrets, store, origin=None):
        super().__init__(address, Handler)
        self.secrets, self.store, self.origin = secrets, store, origin


def main():
    parser = argparse.ArgumentParser(description="Receive notifications of Bode.")
    parser.add_argument("--secret", action="append", help="whsec_…; or in RECEIVER_SECRET, out of sight of others")
    parser.add_argument("--database", default="notifications.db")
    parser.add_argument("--host", default="127.0.0.1", help="put a proxy that does TLS before it")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--origin", help="the only WebHook-Request-Origin to consent to")
    parser.add_argument("--reconcile", metavar="URL", help="compare what is stored with this subscription, and end")
    parser.add_argument("--key", default=os.environ.get("RECEIVER_KEY"), help="API key for it; or in RECEIVER_KEY")
    given = parser.parse_args()
    if given.reconcile:
        last, wrong, not_delivered = reconcile(Store(given.database), given.reconcile, given.key)
        for stone in not_delivered:
            print(f"{stone['from']}-{stone['to']}: {stone['state']} {stone['reason'] or ''}".rstrip())
        print("\n".join(wrong) or f"complete: 1-{last}")
        raise SystemExit(1 if wrong else 0)
    secrets = given.secret or os.environ.get("RECEIVER_SECRET", "").split()
    if not secrets:
        parser.error("give --secret or set RECEIVER_SECRET")
    server = Receiver((given.host, given.port), secrets, Store(given.database), given.origin)
    print(f"listening on http://{given.host}:{server.server_port}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
