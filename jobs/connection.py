"""A connection to a Redis or Valkey by its URL, checked at once. Messages and errors never show a password."""

import re
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from store.errors import QueueError

CONNECT_LIMIT = 3        # seconds
ANSWER_LIMIT = 15        # seconds for one command; a server may be slow while it rewrites its journal
OLDEST = (6, 2)          # version; Valkey reports 7.2.4


def connect(url: str) -> redis.Redis:
    """Connect, and see that it answers; raises QueueError."""
    check_url(url)
    version = read_version(url)
    if version < OLDEST:
        found = ".".join(map(str, version))
        raise QueueError(f"{mask(url)}: expected Redis 6.2 or newer, or any Valkey, found {found}; update the server")
    return redis.Redis.from_url(
        url, socket_connect_timeout=CONNECT_LIMIT, socket_timeout=ANSWER_LIMIT, retry=short_patience()
    )


def short_patience() -> Retry:
    """Make the patience of a command that a person waits for: 3 s. A worker has its own."""
    return Retry(ExponentialBackoff(cap=1, base=0.05), retries=5)


def check_url(url: str) -> None:
    """Raise QueueError for a URL of another kind, or one whose password would be taken for a part of the address."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis", "rediss", "unix") or not rest:
        raise QueueError(f"{mask(url)}: expected redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
    try:
        parts = urlsplit(url)
        sound = parts.port != 0 and (scheme == "unix" or "@" not in parts.path + parts.query + parts.fragment)
    except ValueError:
        sound = False
    if not sound:
        raise QueueError(
            f"{mask(url)}: expected {scheme}://[:PASSWORD@]HOST:PORT[/DB], found something else; "
            "in a password write % / ? # @ as %25 %2F %3F %23 %40"
        )


def read_version(url: str) -> tuple[int, ...]:
    """Ask a Redis for its version, without patience; raises QueueError when it does not answer."""
    try:
        options = {"socket_connect_timeout": CONNECT_LIMIT, "socket_timeout": CONNECT_LIMIT}
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options) as connection:
            version = str(connection.info("server")["redis_version"])
        return tuple(int(part) for part in version.split(".")[:2])
    except (redis.RedisError, OSError) as error:
        found = str(error)
    except (ValueError, TypeError):
        found = "options that cannot be read"
    # Raised here, without the cause, whose traceback may show the password.
    raise QueueError(f"{mask(url)}: expected a Redis that answers, found: {found.rstrip('.')}; {advice(found)}")


def advice(found: str) -> str:
    """Say what a person can do about a Redis that cannot be asked."""
    if "certificate verify failed" in found:
        return "name the authority that vouches for it, rediss://HOST:PORT?ssl_ca_certs=FILE, if the host is right"
    return "is it running, are address and password right?"


def mask(url: str) -> str:
    """Hide user and password in a URL, also in one that is malformed."""
    without = re.sub(r"((password|passwd|pwd)=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
    return re.sub(r"^(\w+://)?.*@", r"\1***@", without)


def address(connection: redis.Redis) -> str:
    """Name where a connection leads, for messages."""
    options = connection.get_connection_kwargs()
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
