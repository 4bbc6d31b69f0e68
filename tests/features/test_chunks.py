"""Chunks of incremental.py: features that survive a kill, and what the next run takes of them."""

from pathlib import Path

import numpy as np
import pytest

from features.incremental import Chunk, missing_rows, read_chunks, save_chunk, split_rows


def test_what_was_saved_is_read_without_damaged_chunks(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """A damaged one is removed, so that its pictures are extracted again."""
    features = rng.random((9, 4), np.float32)
    for rows in (np.arange(4), np.arange(6, 9), np.array([4, 5])):
        errors = ["torn: \udcff" if row in (1, 8) else "" for row in rows]
        save_chunk(tmp_path / "x", rows, errors, {"all_feat.npy": features[rows]})
    whole = read_chunks(tmp_path / "x")
    assert missing_rows(whole, 10).tolist() == [9]
    assert [chunk.errors for chunk in whole] == [{1: "torn: \udcff"}, {}, {8: "torn: \udcff"}]
    for chunk in whole:
        assert np.array_equal(np.load(chunk.file)["all_feat.npy"], features[chunk.rows])
    content = whole[0].file.read_bytes()
    for damaged in (b"", content[:-1], content[: len(content) // 2], b"x" * len(content)):
        whole[0].file.write_bytes(damaged)
        assert missing_rows(read_chunks(tmp_path / "x"), 9).tolist() == [0, 1, 2, 3]
        assert not whole[0].file.exists()
    assert read_chunks(tmp_path / "none") == []


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("done", [[], [*range(16), *range(48, 64)], range(97)])
def test_missing_rows_are_split_by_whole_batches(done: list[int], processes: int) -> None:
    """By hand: each picture once, in order, no batch split, no process with two batches more."""
    chunks = [Chunk(Path(), np.array(done, int), {})] if done else []
    parts = split_rows(missing_rows(chunks, 97), processes, 16)
    assert len(parts) == processes
    assert np.concatenate(parts).tolist() == [row for row in range(97) if row not in done]
    batches = [set((part // 16).tolist()) for part in parts]
    assert sum(map(len, batches)) == len(set().union(*batches))
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
