"""The tables and views as queries name them. `migrations` makes them; a test holds the two together."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    column,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect

from store.text import clean


class Text(TypeDecorator[str]):
    """Text that is cleaned on its way into the database."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what databases refuse."""
        return None if value is None else clean(value)


metadata = MetaData()

meta = Table(
    "diptych",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),          # the order of their making; a clock may be set back
    Column("name", Text),
    Column("prompt", Text, nullable=False),
    Column("thinking", Integer, nullable=False),           # 0 or 1, as do_sample: the same on every database
    Column("do_sample", Integer, nullable=False),
    Column("temperature", Double, nullable=False),
    Column("top_k", BigInteger, nullable=False),
    Column("top_p", Double, nullable=False),
    Column("repetition_penalty", Double, nullable=False),
    Column("max_tokens", BigInteger, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("batch_size", BigInteger, nullable=False),
    Column("pairs_file", Text),
    Column("pairs_sha256", Text),
    Column("embeddings_dir", Text, nullable=False),
    Column("embeddings_fingerprint", Text, nullable=False),
    Column("weights_dir", Text, nullable=False),
    Column("model_fingerprint", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("environment", Text, nullable=False),           # JSON object
    Column("argv", Text, nullable=False),                  # JSON array
    Column("created_at", Text, nullable=False),
    Column("started_at", Text),
    Column("finished_at", Text),
    Column("cancelled_at", Text),
    Column("total", BigInteger, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("pair_order", Text, nullable=False),            # in which pairs were divided into jobs
)

jobs = Table(
    "jobs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("job", BigInteger, primary_key=True),
    Column("size", BigInteger, nullable=False),            # pairs
    Column("attempts", BigInteger, nullable=False),
    Column("worker", Text),
    Column("started_at", Text),
    Column("finished_at", Text),
    Column("seconds", Double),
    Column("deaths", BigInteger, nullable=False, server_default="0"),    # takes without a result or an orderly end
)

pairs = Table(
    "pairs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("idx_a", BigInteger, nullable=False),
    Column("idx_b", BigInteger, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("job", BigInteger, nullable=False),
)

deaths = Table(                                            # of pairs that are tried alone
    "deaths",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("job", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
)

images = Table(
    "images",
    metadata,
    Column("embeddings_fingerprint", Text, primary_key=True),
    Column("idx", BigInteger, primary_key=True),
    Column("name", Text, nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("status", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("thinking", Text, nullable=False),
    Column("finish_reason", Text),
    Column("token_ids", LargeBinary, nullable=False),      # little-endian uint32: 4 bytes a token
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("batch_size", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("worker", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text, nullable=False),
    Column("error", Text),
    Column("retry", Integer, nullable=False),              # 1: a failed row that stays until its job has run again
)
# A literal, not a parameter: only so does SQLite see that the index results_to_retry answers it.
is_to_retry = results.c.retry == literal_column("1")

fingerprints = Table(
    "fingerprints",
    metadata,
    Column("path", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("inode", Text, nullable=False),                 # unsigned 64 bit on some file systems
    Column("sha256", Text, nullable=False),
)

COMPARISON_COLUMNS = (
    "run_id", "position", "idx_a", "idx_b", "image_a", "image_b", "status", "text", "thinking", "finish_reason",
    "prompt_tokens", "generated_tokens", "seed", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty",
    "max_tokens", "prompt", "batch_size", "job_id", "attempt", "worker", "device", "started_at", "finished_at", "error",
)
RUN_COLUMNS = (
    "run_id", "name", "state", "created_at", "finished_at", "total", "done", "failed", "pending", "seed", "do_sample",
    "temperature", "top_k", "top_p", "repetition_penalty", "max_tokens", "prompt", "batch_size", "pairs_file",
    "embeddings_dir", "weights_dir", "model_fingerprint", "embeddings_fingerprint", "version",
)

comparisons = table("comparisons", *(column(name) for name in COMPARISON_COLUMNS))
run_summary = table("run_summary", *(column(name) for name in RUN_COLUMNS))


def insert_into(connection: Connection, target: Table) -> sqlite.Insert | postgresql.Insert:
    """Return the dialect's own insert, which has on_conflict_do_nothing and on_conflict_do_update on both."""
    return postgresql.insert(target) if connection.dialect.name == "postgresql" else sqlite.insert(target)


def lock_run(connection: Connection, run_id: str) -> None:
    """Lock a run's row before rows of its jobs, pairs and deaths are: in one order, or PostgreSQL finds deadlocks."""
    connection.execute(select(runs.c.id).where(runs.c.id == run_id).with_for_update())
