"""Whose key Schemathesis sends: the operator's where only the operator may, else that of an organisation of the test."""

import os
from typing import Any

import schemathesis


@schemathesis.auth(refresh_interval=None)
class Keys:
    def get(self, case: Any, context: schemathesis.AuthContext) -> str:
        scopes = [scope for each in context.operation.definition.raw.get("security", []) for scope in each["bearer"]]
        return os.environ["OPERATOR_KEY" if scopes == ["operate"] else "ORGANISATION_KEY"]

    def set(self, case: Any, data: str, context: schemathesis.AuthContext) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}
