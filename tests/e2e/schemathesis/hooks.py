"""Whose key Schemathesis sends: the operator's where only the operator may, else that of an organisation of its own."""

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


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: Any) -> bool:
    """The key that it works with isn't revoked: everything after that would be 401."""
    return os.environ["ORGANISATION_KEY_ID"] not in str((case.path_parameters or {}).get("id", ""))
