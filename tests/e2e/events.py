"""Events that tests publish."""

import json
from typing import Any
from uuid import uuid4


def event(source: str, type: str, subject: str | None = None, **more: Any) -> bytes:
    attributes = {"specversion": "1.0", "id": str(uuid4()), "source": source, "type": type, **more}
    if subject is not None:
        attributes["subject"] = subject
    return json.dumps({name: value for name, value in attributes.items() if value is not None}).encode()
