"""The schema, step by step: migration N leads from version N - 1 to N. A step is never edited, only followed."""

import uuid
from collections.abc import Callable

from sqlalchemy import inspect, select
from sqlalchemy.engine import Connection

from store.schema import insert_into, meta

Migration = Callable[[Connection], None]

_WORDS = {
    "sqlite": {
        "integer": "INTEGER", "real": "REAL", "blob": "BLOB", "rows": "STRICT", "keyed": "STRICT, WITHOUT ROWID",
    },
    "postgresql": {"integer": "BIGINT", "real": "DOUBLE PRECISION", "blob": "BYTEA", "rows": "", "keyed": ""},
}
_CREATION_LOCK = 0x64697074796368      # "diptych": PostgreSQL's advisory lock while the schema changes

_TABLES_1 = (
    "CREATE TABLE diptych (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) {rows}",
    """
    CREATE TABLE runs (
        id TEXT NOT NULL PRIMARY KEY, number {integer} NOT NULL, name TEXT,
        prompt TEXT NOT NULL, thinking {integer} NOT NULL, do_sample {integer} NOT NULL, temperature {real} NOT NULL,
        top_k {integer} NOT NULL, top_p {real} NOT NULL, repetition_penalty {real} NOT NULL,
        max_tokens {integer} NOT NULL, seed {integer} NOT NULL, batch_size {integer} NOT NULL,
        pairs_file TEXT, pairs_sha256 TEXT, embeddings_dir TEXT NOT NULL, embeddings_fingerprint TEXT NOT NULL,
        weights_dir TEXT NOT NULL, model_fingerprint TEXT NOT NULL,
        version TEXT NOT NULL, environment TEXT NOT NULL, argv TEXT NOT NULL,
        created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT, cancelled_at TEXT,
        total {integer} NOT NULL, done {integer} NOT NULL, failed {integer} NOT NULL
    ) {rows}
    """,
    """
    CREATE TABLE jobs (
        run_id TEXT NOT NULL REFERENCES runs (id), job {integer} NOT NULL, size {integer} NOT NULL,
        attempts {integer} NOT NULL, worker TEXT, started_at TEXT, finished_at TEXT, seconds {real},
        PRIMARY KEY (run_id, job)
    ) {keyed}
    """,
    """
    CREATE TABLE pairs (
        run_id TEXT NOT NULL REFERENCES runs (id), position {integer} NOT NULL,
        idx_a {integer} NOT NULL, idx_b {integer} NOT NULL, seed {integer} NOT NULL, job {integer} NOT NULL,
        PRIMARY KEY (run_id, position)
    ) {keyed}
    """,
    "CREATE INDEX pairs_by_job ON pairs (run_id, job)",
    """
    CREATE TABLE images (
        embeddings_fingerprint TEXT NOT NULL, idx {integer} NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY (embeddings_fingerprint, idx)
    ) {keyed}
    """,
    """
    CREATE TABLE results (
        run_id TEXT NOT NULL, position {integer} NOT NULL, status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
        text TEXT NOT NULL, thinking TEXT NOT NULL, finish_reason TEXT CHECK (finish_reason IN ('stop', 'length')),
        token_ids {blob} NOT NULL, prompt_tokens {integer} NOT NULL, generated_tokens {integer} NOT NULL,
        seed {integer} NOT NULL, batch_size {integer} NOT NULL, attempt {integer} NOT NULL,
        worker TEXT NOT NULL, device TEXT NOT NULL, started_at TEXT NOT NULL, finished_at TEXT NOT NULL,
        error TEXT CHECK ((status = 'failed') = (error IS NOT NULL)),
        retry {integer} NOT NULL CHECK (retry = 0 OR (retry = 1 AND status = 'failed')),
        PRIMARY KEY (run_id, position), FOREIGN KEY (run_id, position) REFERENCES pairs (run_id, position)
    ) {rows}
    """,
    "CREATE INDEX results_to_retry ON results (run_id) WHERE retry = 1",
    """
    CREATE TABLE fingerprints (
        path TEXT NOT NULL PRIMARY KEY, size {integer} NOT NULL, mtime_ns {integer} NOT NULL, inode TEXT NOT NULL,
        sha256 TEXT NOT NULL
    ) {rows}
    """,
)

_VIEWS_1 = (
    """
    CREATE VIEW comparisons AS
    SELECT p.run_id AS run_id, p.position AS position, p.idx_a AS idx_a, p.idx_b AS idx_b,
        a.name AS image_a, b.name AS image_b, COALESCE(x.status, 'pending') AS status,
        x.text AS text, x.thinking AS thinking, x.finish_reason AS finish_reason,
        x.prompt_tokens AS prompt_tokens, x.generated_tokens AS generated_tokens, COALESCE(x.seed, p.seed) AS seed,
        r.do_sample AS do_sample, r.temperature AS temperature, r.top_k AS top_k, r.top_p AS top_p,
        r.repetition_penalty AS repetition_penalty, r.max_tokens AS max_tokens, r.prompt AS prompt,
        x.batch_size AS batch_size, p.run_id || '-' || CAST(p.job AS TEXT) AS job_id, x.attempt AS attempt,
        x.worker AS worker, x.device AS device, x.started_at AS started_at, x.finished_at AS finished_at,
        x.error AS error
    FROM pairs p
    JOIN runs r ON r.id = p.run_id
    LEFT JOIN results x ON x.run_id = p.run_id AND x.position = p.position
    LEFT JOIN images a ON a.embeddings_fingerprint = r.embeddings_fingerprint AND a.idx = p.idx_a
    LEFT JOIN images b ON b.embeddings_fingerprint = r.embeddings_fingerprint AND b.idx = p.idx_b
    """,
    """
    CREATE VIEW run_summary AS
    SELECT id AS run_id, name,
        CASE WHEN finished_at IS NOT NULL THEN 'done' WHEN cancelled_at IS NOT NULL THEN 'cancelled'
            WHEN started_at IS NOT NULL THEN 'running' ELSE 'queued' END AS state,
        created_at, finished_at, total, done, failed, total - done - failed AS pending,
        seed, do_sample, temperature, top_k, top_p, repetition_penalty, max_tokens, prompt, batch_size,
        pairs_file, embeddings_dir, weights_dir, model_fingerprint, embeddings_fingerprint, version
    FROM runs
    """,
)


def _first(connection: Connection) -> None:
    """Make the tables and the two views, and give the database its UUID."""
    for statement in (*_TABLES_1, *_VIEWS_1):
        connection.exec_driver_sql(statement.format(**_WORDS[connection.dialect.name]))
    connection.execute(meta.insert(), [{"key": "id", "value": uuid.uuid4().hex}])


def _second(connection: Connection) -> None:
    """Record how pairs were divided into jobs; until now as their file had them."""
    connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN pair_order TEXT NOT NULL DEFAULT 'file' "
                               "CHECK (pair_order IN ('grouped', 'file'))")


_DEATHS_3 = """
    CREATE TABLE deaths (
        run_id TEXT NOT NULL, position {integer} NOT NULL, job {integer} NOT NULL, count {integer} NOT NULL,
        PRIMARY KEY (run_id, position), FOREIGN KEY (run_id, position) REFERENCES pairs (run_id, position)
    ) {keyed}
"""


def _third(connection: Connection) -> None:
    """Count the deaths of workers, of a job and of a pair that is tried alone."""
    words = _WORDS[connection.dialect.name]
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN deaths {integer} NOT NULL DEFAULT 0".format(**words))
    connection.exec_driver_sql(_DEATHS_3.format(**words))


MIGRATIONS: tuple[Migration, ...] = (_first, _second, _third)


def read_version(connection: Connection) -> int | None:
    """Return the schema's version; 0 for an empty database, None for one that holds another program's tables."""
    tables = inspect(connection).get_table_names()
    if meta.name not in tables:
        return None if tables else 0
    value = connection.scalar(select(meta.c.value).where(meta.c.key == "version"))
    return int(value) if value is not None and value.isdecimal() else None


def migrate(connection: Connection) -> None:
    """Take the steps that the database lacks, all or none; doing it twice is safe."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
    version = read_version(connection)
    assert version is not None, "Database refuses another program's tables before it comes here"
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        migration(connection)
        row = insert_into(connection, meta).values(key="version", value=str(number))
        connection.execute(row.on_conflict_do_update(index_elements=["key"], set_={"value": str(number)}))
