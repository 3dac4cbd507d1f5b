"""Which user a server runs as. PostgreSQL refuses to run as root, and RabbitMQ needn't."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

_ACCOUNTS = ("bode", "nobody")
"""In this order, when we are root and nobody owns the folder yet. An unnamed user id won't do: initdb looks it up."""


class NoAccount(Exception):
    """There is no user that this server could run as on this folder."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a server runs as."""

    user: int
    group: int

    @property
    def changes(self) -> bool:
        """Whether this is another user than we are."""
        return self.user != os.geteuid()

    def own(self, path: Path) -> None:
        """Give a file or folder of ours to this user."""
        if self.changes:
            os.chown(path, self.user, self.group)

    def admit_to(self, folder: Path) -> None:
        """Let this user pass a folder that stays ours: what it doesn't own, it can't replace under our feet."""
        if self.changes:
            folder.chmod(0o711)

    def passes(self, *paths: Path) -> bool:
        """Whether this user may pass every folder on the way to the paths without a capability."""
        if not self.changes:
            return True
        for path in paths:
            for folder in path.resolve().parents:
                status = folder.stat()
                if status.st_uid == self.user:
                    allowed = status.st_mode & 0o100
                elif status.st_gid == self.group:
                    allowed = status.st_mode & 0o010
                else:
                    allowed = status.st_mode & 0o001
                if not allowed:
                    return False
        return True


def account_for(folder: Path) -> Account:
    """Ourselves, or when we are root an ordinary user: the one who owns the folder's data, else a default.

    Raises:
        NoAccount: the folder is another user's and we aren't root, or no suitable user exists.
    """
    owner = folder.stat() if folder.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise NoAccount(f"{folder} belongs to another user")
        return Account(os.geteuid(), os.getegid())
    if owner is not None and owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise NoAccount(f"root needs an ordinary user to run a server as; make one of {', '.join(_ACCOUNTS)}")
