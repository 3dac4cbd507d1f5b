"""A secret is changed over while notifications flow: who has the old or the new one sees no wrong signature."""

import asyncio
import time
from datetime import UTC, datetime

from accepting import Publisher
from delivering import Asked, Delivering, RawSink
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

OVERLAP_SECONDS = 6


def holds(secret: str, asked: Asked) -> bool:
    try:
        Webhook(secret).verify(asked.body, dict(asked.fields))
    except WebhookVerificationError:
        return False
    return True


def sent_at(asked: Asked) -> int:
    return int(dict(asked.fields)["webhook-timestamp"])


async def test_no_signature_fails_at_a_receiver_that_has_the_old_or_the_new_secret(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    body = {"sink": sink.url("/"), "protocol": "HTTP", "types": [f"{publisher.domain}.iets"]}
    made = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    identity, old = made.json["id"], made.json["secret"]
    bode.process._handshaker.ask()
    await bode.wait_for(identity, status="active")
    done = asyncio.Event()

    async def publish() -> int:
        count = 0
        while not done.is_set():
            await bode.publish(publisher, *(f"s{number}" for number in range(10)))
            count += 10
            await asyncio.sleep(0.1)
        return count

    publishing = asyncio.create_task(publish())
    await sink.wait_for("POST", "/", 30)
    answer = await bode.world.call(
        "POST", f"/subscriptions/{identity}/secret", key=bode.provider_key, body={"overlapSeconds": OVERLAP_SECONDS}
    )
    known_at, new = time.time(), answer.json["secret"]
    expires_at = datetime.fromisoformat(answer.json["previousExpiresAt"]).astimezone(UTC).timestamp()
    await asyncio.sleep(max(expires_at - time.time(), 0) + 2)
    done.set()
    count = await publishing
    arrived = await sink.wait_for("POST", "/", count, seconds=60)
    before = [asked for asked in arrived if sent_at(asked) < known_at - 1]
    between = [asked for asked in arrived if known_at + 1 < sent_at(asked) < expires_at - 1]
    after = [asked for asked in arrived if sent_at(asked) > expires_at + 1]
    assert all(holds(old, asked) for asked in arrived if sent_at(asked) < expires_at - 1)
    assert all(holds(new, asked) for asked in arrived if sent_at(asked) > known_at + 1)
    assert between, "some were sent in the overlap"
    assert after, "some were sent when the old one had ended"
    assert not any(holds(old, asked) for asked in after)
    assert not any(holds(new, asked) for asked in before)
