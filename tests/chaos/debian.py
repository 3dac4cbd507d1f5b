"""A Debian 13 tree with RabbitMQ 4 in a folder, made by debootstrap from the mirror that this machine uses."""

import os
import shutil
import subprocess
from pathlib import Path

_SUITE = "trixie"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_POLICY = "#!/bin/sh\nexit 101\n"
_TIME_SECONDS = 900


def make(folder: Path) -> tuple[Path | None, str]:
    """The tree, made if it isn't there yet; or None, and why not."""
    folder = folder.absolute()
    if list(folder.glob("usr/lib/rabbitmq/lib/rabbitmq_server-4*")):
        return folder, ""
    if os.geteuid() != 0:
        return None, "only root can make a Debian tree"
    if shutil.which("debootstrap") is None:
        return None, "debootstrap is not installed (apt-get install debootstrap)"
    mirror = _mirror()
    if mirror is None:
        return None, "apt names no Debian mirror"
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    keyring = [f"--keyring={_KEYRING}"] if _KEYRING.exists() else []
    try:
        _call("debootstrap", "--variant=minbase", *keyring, _SUITE, str(new), mirror)
        policy = new / "usr/sbin/policy-rc.d"  # the package must not start its service
        policy.write_text(_POLICY)
        policy.chmod(0o755)
        _call("chroot", str(new), "apt-get", "install", "-y", "--no-install-recommends", "rabbitmq-server")
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(new, ignore_errors=True)
        return None, f"Debian {_SUITE} can't be had here ({str(error)[:200]})"
    new.rename(folder)
    return folder, ""


def _mirror() -> str | None:
    """The mirror of Debian itself that apt is configured with."""
    try:
        said = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages", "Origin: Debian"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        return None
    found = [line.rpartition(" ")[0] for line in said.splitlines() if line.endswith(" Debian")]
    return found[0] if found else None


def _call(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    subprocess.run(command, check=True, timeout=_TIME_SECONDS, env=environment, stdout=subprocess.DEVNULL)
