"""What has changed in a run's files since it was enqueued, by what it has recorded of them. Older runs have nothing."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Literal

from jobs.inputs import Inputs
from store.embeddings import BIN, NAMES
from store.fingerprint import FileFacts, FingerprintCache, describe, differences
from store.records import Run

Kind = Literal["weights_files", "embeddings_files"]      # keys of a run's environment


def run_files(inputs: Inputs) -> dict[Kind, tuple[Path, ...]]:
    """List the files of a run that have fingerprints."""
    embeddings = inputs.embeddings.folder
    return {"weights_files": inputs.checkpoint.files, "embeddings_files": (embeddings / BIN, embeddings / NAMES)}


def record_files(inputs: Inputs, cache: FingerprintCache) -> dict[str, str]:
    """Return what a run's environment keeps of its files: JSON of each one's size and digests, by its name."""
    return {kind: json.dumps({name: astuple(facts) for name, facts in describe(files, cache).items()})
            for kind, files in run_files(inputs).items()}


def find_changes(run: Run, kind: Kind, files: Sequence[Path], cache: FingerprintCache) -> list[str]:
    """Say of each of a run's files what has changed; nothing where the run has recorded none. Raises OSError."""
    recorded = _recorded(run, kind)
    return differences(recorded, describe(files, cache)) if recorded else []


def find_changes_in(run: Run, kind: Kind, folder: Path, cache: FingerprintCache) -> list[str]:
    """Say the same of those recorded files that are in a folder, where it cannot be opened. Raises OSError."""
    there = {name: facts for name, facts in _recorded(run, kind).items() if (folder / name).is_file()}
    return differences(there, describe([folder / name for name in there], cache))


def _recorded(run: Run, kind: Kind) -> dict[str, FileFacts]:
    return {name: FileFacts(*facts) for name, facts in json.loads(run.environment.get(kind, "{}")).items()}
