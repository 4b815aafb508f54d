"""A ticket: the ids of one job, all that ever stands on the queue; and the RQ job that can be nothing else.

What is read from Redis is not trusted: whoever reaches it can write there.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import redis
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

# Named, not imported: enqueueing must work on a machine without MLX.
TASK = "workers.tasks.compare_job"
RETRIES = 3               # times a job is tried again after an error
TICKET_ID = re.compile(r"([A-Za-z0-9_-]{1,64})-(0|[1-9][0-9]{0,8})")
FIELDS = ("data", "origin", "status", "retries_left")      # all that is read of a job in Redis
LARGEST = 1000            # bytes of these fields together; a real ticket has about 150
SHOWN = 120               # characters of what was found that a message repeats


class TicketError(NoSuchJobError):
    """What stands in Redis is no ticket of ours. RQ takes it for a job that does not exist."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One job of one run, to be computed."""

    run_id: str
    job: int

    @property
    def id(self) -> str:
        """Name the ticket in Redis."""
        return f"{self.run_id}-{self.job}"


def parse_ticket_id(entry: bytes | str) -> Ticket:
    """Read a ticket's id; raises TicketError for anything else."""
    text = as_text(entry)
    match = TICKET_ID.fullmatch(text)
    if match is None:
        raise TicketError(f"expected an id RUN-JOB, found {text[:SHOWN]!r}")
    return Ticket(match[1], int(match[2]))


def ticket_data(ticket: Ticket) -> list[Any]:
    """Give a ticket's call as RQ serializes it: function, instance, arguments, keyword arguments."""
    return [TASK, None, [ticket.run_id, ticket.job], {}]


def readable_tickets(entries: Iterable[bytes | str]) -> Iterator[Ticket]:
    """Read those entries that are ids of tickets, and pass over the others."""
    for entry in entries:
        try:
            yield parse_ticket_id(entry)
        except TicketError:
            continue


def as_text(value: bytes | str) -> str:
    """Decode a value of Redis, whatever it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class TicketJob(Job):
    """An RQ job that can be nothing but a ticket: no other function, no callbacks, no webhooks, nothing large."""

    ticket: Ticket

    def refresh(self) -> None:
        """Read the job from Redis; raises TicketError, before reading it, for one too large."""
        try:
            with self.connection.pipeline() as pipe:
                for field in FIELDS:
                    pipe.hstrlen(self.key, field)
                size = sum(pipe.execute())
            if size > LARGEST:
                raise TicketError(f"expected at most {LARGEST:,} bytes, found {size:,}")
            values = self.connection.hmget(self.key, FIELDS)
        except redis.ResponseError as error:
            raise TicketError(f"expected a hash, found: {error}") from error
        self.restore({field.encode(): value for field, value in zip(FIELDS, values, strict=True)})

    def restore(self, raw_data: Mapping[bytes, Any]) -> None:
        """Take a ticket's fields, and no others, from a job's hash; raises TicketError."""
        self.ticket, self.serializer = parse_ticket_id(self.id), JSONSerializer      # never pickle
        fields = {name.encode(): raw_data.get(name.encode()) for name in FIELDS}
        if fields[b"data"] is None:
            raise TicketError("its hash is gone")
        try:
            super().restore({name: value for name, value in fields.items() if value is not None})
            found = [self.func_name, self.instance, list(self.args), self.kwargs]
        except Exception as error:      # whatever hostile bytes make of RQ's reader, it is no ticket
            raise TicketError(f"expected a job of ours, found one that gives {type(error).__name__}") from error
        if found != ticket_data(self.ticket):
            raise TicketError(f"expected {ticket_data(self.ticket)}, found {repr(found)[:SHOWN]}")
        self.timeout = -1
        self.retries_left = min(self.retries_left or 0, RETRIES)

    @property
    def func(self) -> NoReturn:
        """Refuse to be run: RQ would import any function that a hash names. A worker's own class knows the one."""
        raise TicketError(f"{self.id}: only a worker runs tickets")
