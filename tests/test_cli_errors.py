"""Bad input: a clear error, exit status 2, nothing enqueued, nothing lost."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, WEIGHTS, run_diptych

from cli.main import diptych, run


@pytest.fixture(autouse=True)
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in the workspace, with a copy of the checkpoint that may be spoilt."""
    (workspace / "vision_weights").unlink()
    shutil.copytree(WEIGHTS, workspace / "vision_weights")
    monkeypatch.chdir(workspace)
    return workspace


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must be refused; return the message."""
    status = run(diptych, [str(word) for word in words])
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert status == 2, captured.err
    assert last.startswith("Error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not Path("results.db").exists()
    return last


@pytest.mark.parametrize(("content", "expected"), [
    (b"0,1\nzero,1\n", "line 2"),
    (b"0,1\n2\n", "line 2"),
    (b"0,1,2\n", "line 1"),
    (b"0,-1\n", "line 1"),
    (b"0,1\n\n0,4\n", "line 3"),
    (b"0,99999999999999999999\n", "line 1"),
    (b"0,1\x00\n", "line 1"),
    (b"0,1\n\xff\xfe,1\n", "line 2"),
    (b"", "found none"),
    (b"# nothing but a comment\n", "found none"),
])
def test_a_pairs_file_that_is_wrong_is_refused_with_file_and_line(
    capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    Path("pairs.txt").write_bytes(content)

    message = refused(capsys, "enqueue", "pairs.txt")

    assert "pairs.txt" in message
    assert expected in message


def test_a_missing_pairs_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.txt" in refused(capsys, "enqueue", "nowhere.txt")
    assert "--random" in refused(capsys, "enqueue")


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def cut_embeddings(folder: Path) -> None:
    os.truncate(folder / "embeddings.bin", 1000)


def no_filenames(folder: Path) -> None:
    (folder / "filenames.txt").unlink()


def other_width(folder: Path) -> None:
    facts = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps(facts | {"hidden": 128}))


def not_finite(folder: Path) -> None:
    rows = np.memmap(folder / "embeddings.bin", "<f2", mode="r+")
    rows[len(rows) // 4 + 5] = np.nan      # in image 1
    rows.flush()


@pytest.mark.parametrize(("spoil", "expected"), [
    (no_folder, ["embeddings_512", "precompute"]),
    (cut_embeddings, ["4 x 256 x 64 x 2 = 131,072 bytes", "1,000"]),
    (no_filenames, ["filenames.txt"]),
    (other_width, ["128", "64"]),
    (not_finite, ["001.png"]),
])
def test_embeddings_that_cannot_be_used_are_refused(
    capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], expected: list[str]
) -> None:
    spoil(Path("embeddings_512"))

    message = refused(capsys, "enqueue", "pairs.txt")

    assert all(part in message for part in expected), message


def ancestors_format(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "vision_blocks_0_attn_qkv_weight.bin").write_bytes(bytes(4096))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def moe(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "glm4v_moe"}))


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 500_000)


def without_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.language_model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def without_theta(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("spoil", "expected"), [
    (no_folder, ["vision_weights", "hf download"]),
    (ancestors_format, ["hf download"]),
    (no_config, ["config.json"]),
    (moe, ["glm4v_moe"]),
    (truncated, ["model.safetensors"]),
    (without_tensor, ["layers.1.mlp.down_proj.weight"]),
    (without_theta, ["rope_theta"]),
])
@pytest.mark.parametrize("words", [("enqueue", "pairs.txt"), ("generate",), ("precompute", ".", "-o", "fresh")])
def test_weights_that_cannot_be_used_are_refused(
    capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], expected: list[str], words: tuple[str, ...]
) -> None:
    spoil(Path("vision_weights"))

    message = refused(capsys, *words)

    assert all(part in message for part in expected), message


@pytest.mark.parametrize(("words", "expected"), [
    (("--temperature", "0"), "temperature"), (("--temperature", "-1"), "temperature"),
    (("--temperature", "nan"), "temperature"), (("--top-p", "0"), "top_p"), (("--top-p", "1.5"), "top_p"),
    (("--top-p", "nan"), "top_p"), (("--top-k", "-1"), "top_k"), (("--batch-size", "0"), "batch-size"),
    (("--max-tokens", "0"), "max_tokens"), (("--repetition-penalty", "0"), "repetition_penalty"),
    (("--seed", "-1"), "seed"), (("--seed", str(2**53)), "seed"),
    (("--prompt", "look <|image|>"), "<|image|>"), (("--prompt", "only <image_a>"), "<image_b>"),
    (("--prompt", ""), "prompt"), (("--prompt", "a", "--prompt-file", "b"), "--prompt-file"),
    (("--prompt-file", "nowhere.txt"), "nowhere.txt"),
])
def test_options_out_of_their_range_are_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(capsys, "enqueue", "pairs.txt", *words)


def test_temperature_zero_is_no_fault_without_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(diptych, ["enqueue", "pairs.txt", "--greedy", "--temperature", "0", "--dry-run"]) == 0
    assert "jobs: 1" in capsys.readouterr().out


def test_a_database_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("letter.db").write_text("Dear Sir or Madam, this is no database, however long it goes on. " * 20)

    assert "letter.db" in refused(capsys, "enqueue", "pairs.txt", "--db", "letter.db")
    assert "nowhere" in refused(capsys, "enqueue", "pairs.txt", "--db", "nowhere/results.db")
    assert Path("letter.db").read_text().startswith("Dear Sir")


def test_a_redis_that_does_not_answer_is_named_without_its_password_and_nothing_is_enqueued(here: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    url = f"redis://:hushhush@127.0.0.1:{port}/0"

    asked = run_diptych("enqueue", "pairs.txt", "--redis", url, cwd=here)

    assert asked.returncode == 2, asked.stderr
    assert f"127.0.0.1:{port}" in asked.stderr
    assert "hushhush" not in asked.stderr
    listed = run_diptych("runs", cwd=here)
    assert len(listed.stdout.strip().splitlines()) <= 2      # the head of the table at most: no run


def test_an_unreadable_image_among_good_ones_is_named_skipped_and_counted(here: Path) -> None:
    shutil.copytree(SMALL / "images", here / "photos")
    (here / "photos" / "001b.png").write_bytes((here / "photos" / "002.png").read_bytes()[:2000])

    made = run_diptych("precompute", "photos", "-o", "fresh", cwd=here)

    assert made.returncode == 1, made.stderr
    assert "001b.png" in made.stderr
    assert (here / "fresh" / "filenames.txt").read_text().split() == ["000.png", "001.png", "002.png", "003.png"]
    assert (here / "fresh" / "embeddings.bin").read_bytes() == (here / "embeddings_512/embeddings.bin").read_bytes()


def test_an_unexpected_fault_is_one_line_and_a_traceback_only_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("loose end")

    monkeypatch.setattr("jobs.enqueue.plan_run", broken)

    assert run(diptych, ["enqueue", "pairs.txt"]) == 1
    assert capsys.readouterr().err.startswith("Error: KeyError: 'loose end'")
    monkeypatch.setenv("DIPTYCH_DEBUG", "1")
    with pytest.raises(KeyError):
        run(diptych, ["enqueue", "pairs.txt"])


def test_links_that_lead_outside_are_not_followed_and_are_said(here: Path) -> None:
    shutil.copytree(SMALL / "images", here / "photos")
    (here / "photos" / "linked.png").symlink_to(SMALL / "images" / "000.png")

    made = run_diptych("precompute", "photos", "-o", "fresh", cwd=here)

    assert made.returncode == 0, made.stderr
    assert "links that lead outside: 1" in made.stderr
    assert "linked.png" not in (here / "fresh" / "filenames.txt").read_text()
