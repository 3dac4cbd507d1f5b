"""Signatures at a receiver: of both schemes, and through a change of secret while events flow."""

import asyncio
import base64
from collections.abc import Sequence

import aiohttp
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Received, Receiver


def _bears(received: Received, secret: str) -> bool:
    try:
        Webhook(secret).verify(received.body, received.headers)
    except WebhookVerificationError:
        return False
    return True


async def _public_keys(installation: Installation) -> Sequence[Ed25519PublicKey]:
    root = installation.about["api"].removesuffix("/v1")
    async with aiohttp.ClientSession() as session, session.get(f"{root}/.well-known/jwks.json") as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        keys = (await answer.json(content_type="application/jwk-set+json"))["keys"]
    assert not any("d" in key for key in keys), "the private half"
    return [Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=")) for key in keys]


async def test_who_has_the_published_key_can_verify_without_a_secret(
    installation: Installation, receiver: Receiver
) -> None:
    made = await installation.subscribe(
        "gemeente", receiver.url("both"), types=["nl.brp.dubbel-ondertekend"],
        protocolSettings={"signatures": ["v1", "v1a"]},
    )  # fmt: skip
    assert made["protocolSettings"]["signatures"] == ["v1", "v1a"]
    await installation.publish("brp", [event(installation.source("brp"), "nl.brp.dubbel-ondertekend", "999990342")])
    [received] = await receiver.wait_for("both", 1)
    assert _bears(received, made["secret"])
    (signature,) = [each for each in received.headers["webhook-signature"].split() if each.startswith("v1a,")]
    signed = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}.".encode() + received.body
    verified = 0
    for key in await _public_keys(installation):
        try:
            key.verify(base64.b64decode(signature.removeprefix("v1a,")), signed)
            verified += 1
        except InvalidSignature:
            continue
    assert verified == 1


async def test_change_of_secret_under_load_fails_nobody_who_has_the_old_or_the_new_one(
    installation: Installation, receiver: Receiver
) -> None:
    kind = "nl.brp.sleutel-gewisseld"
    made = await installation.subscribe("gemeente", receiver.url("rotate"), types=[kind])
    source = installation.source("brp")
    answered = 0

    async def rotate_meanwhile() -> str:
        nonlocal answered
        await receiver.wait_for("rotate", 50)
        status, rotated, _ = await installation.call("POST", f"/subscriptions/{made['id']}/secret", "gemeente", {})
        assert status == 200
        answered = len(receiver.at("rotate"))
        await installation.publish("brp", [event(source, kind, f"after-{number}") for number in range(100)])
        return str(rotated["secret"])

    async with asyncio.TaskGroup() as group:
        rotating = group.create_task(rotate_meanwhile())
        for start in range(0, 400, 20):
            await installation.publish("brp", [event(source, kind, f"s-{start + number}") for number in range(20)])
    received = await receiver.wait_for("rotate", 500)
    assert all(_bears(each, made["secret"]) for each in received), "the old one signs through the overlap"
    # what was on its way when the answer came may have been signed before; nothing was begun since without the new one
    under_way = 16  # of one sink, at most
    assert all(_bears(each, rotating.result()) for each in received[answered + under_way :])
    assert sum(_bears(each, rotating.result()) for each in received) >= 100
