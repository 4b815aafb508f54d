"""What a run records about the machine and the program that made it. It never loads MLX to ask its version."""

import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PASSWORDS = (
    re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/@]*?:)[^\s/]*(?=@)", re.IGNORECASE),      # scheme://user:...@host
    re.compile(r"(?P<before>[?&][^?&=\s]*(password|passwd|pwd)=)[^&\s]*", re.IGNORECASE),      # ?ssl_password=...
)


def package_version(name: str) -> str:
    """Return a package's version, `not installed` where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """Collect the versions and the chip that a run records."""
    return {
        "diptych": package_version("diptych"),
        "mlx": package_version("mlx"),
        "python": platform.python_version(),
        "os": platform.platform(),
        "chip": chip(),
    }


def chip() -> str:
    """Name the processor as its maker does, as far as the system tells."""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def mask_passwords(text: str) -> str:
    """Replace the password of every URL in a text by ***."""
    for pattern in _PASSWORDS:
        text = pattern.sub(r"\g<before>***", text)
    return text


def mask_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command line as it may be recorded."""
    return tuple(mask_passwords(word) for word in argv)
