"""Rows: every token once, documents apart from one another (also inside a real attention), and the cache on disk."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from depthdial.train.data import Record
from depthdial.train.encode import Document, encode
from depthdial.train.pack import PackedDataset, pack, prepare
from depthdial.train.shapes import turn

PAD = 99


def document(size: int, start: int = 100, prompt: int = 0) -> Document:
    """Tokens start, start + 1, ...; the first `prompt` of them no targets."""
    return Document(np.arange(start, start + size, dtype=np.int32), np.arange(size) >= prompt)


def pieces(rows: PackedDataset) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of every document of every row, by where positions restart."""
    result = []
    for row in rows:
        starts = [*(row["position_ids"] == 0).nonzero().flatten().tolist(), len(row["position_ids"])]
        for a, b in pairwise(starts):
            assert row["position_ids"][a:b].tolist() == list(range(b - a))
            result.append((row["input_ids"][a:b].tolist(), row["labels"][a:b].tolist()))
    return result


sizes = st.lists(st.integers(2, 40), min_size=1, max_size=60)


@given(sizes, st.integers(2, 20), st.integers(0, 3))
def test_every_token_is_in_exactly_one_row(sizes: list[int], length: int, seed: int):
    documents = [document(n, start=100 * (i + 1)) for i, n in enumerate(sizes)]
    rows = pack(documents, length, seed, pad=PAD)
    cut = [d.input_ids[a : a + length].tolist() for d in documents for a in range(0, len(d.input_ids), length)]
    expected = Counter(tuple(p) for p in cut if len(p) > 1)  # a piece of one token has nothing before it to learn from
    real = [(tokens, labels) for tokens, labels in pieces(rows) if PAD not in tokens]
    assert Counter(tuple(tokens) for tokens, _ in real) == expected
    assert all(labels == [-100, *tokens[1:]] for tokens, labels in real)
    assert all(set(labels) == {-100} for tokens, labels in pieces(rows) if PAD in tokens)
    assert rows.stats.documents == len(sizes)
    assert rows.stats.dropped == len(cut) - expected.total()
    assert rows.stats.rows == len(rows)
    assert rows.stats.tokens == sum(len(t) for t, _ in real)
    assert rows.stats.targets == sum(len(t) - 1 for t, _ in real)
    assert rows.stats.fill == rows.stats.tokens / (len(rows) * length)


def test_rows_are_long_tensors_with_unshifted_labels():
    (row,) = pack([document(5, start=10, prompt=3)], length=8, pad=PAD)
    assert {name: value.dtype for name, value in row.items()} == dict.fromkeys(
        ["input_ids", "labels", "position_ids"], torch.int64
    )
    assert row["input_ids"].tolist() == [10, 11, 12, 13, 14, PAD, PAD, PAD]
    assert row["labels"].tolist() == [-100, -100, -100, 13, 14, -100, -100, -100]
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_token_ids_above_uint16_survive():
    (row,) = pack([document(4, start=200_000)], length=4)
    assert row["input_ids"].tolist() == [200_000, 200_001, 200_002, 200_003]


def test_pieces_without_targets_are_dropped():
    rows = pack([document(20, prompt=15), document(3, start=50, prompt=3)], length=10)
    assert rows.stats.dropped == 2
    assert len(rows) == 1


def test_packing_is_tight_and_follows_the_seed():
    draw = np.random.default_rng(0)
    documents = [document(int(n)) for n in draw.integers(20, 300, 500)]
    one, again, other = (pack(documents, 512, seed) for seed in (1, 1, 2))
    assert one.stats.fill > 0.95
    assert np.array_equal(one.input_ids, again.input_ids)
    assert not np.array_equal(one.input_ids[:100], other.input_ids[:100])


def test_nothing_to_learn_and_silly_lengths_are_refused():
    with pytest.raises(ValueError, match="no token to learn"):
        pack([document(5, prompt=5)], 8)
    with pytest.raises(ValueError, match="row length is 1"):
        pack([document(5)], 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(2, 12), min_size=2, max_size=6), seed=st.integers(0, 9))
def test_packed_logits_equal_separate_logits(attention: str, sizes: list[int], seed: int):
    """Documents in one row do not see one another: from positions alone, with attention_mask=None and no cache."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    documents = [Document(torch.randint(1, 128, (n,)).numpy().astype(np.int32), np.ones(n, bool)) for n in sizes]
    rows = pack(documents, 24, seed)
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        dataset = model(**batch, attention_mask=None, use_cache=False).logits
        for positions, ids, logits in zip(batch["position_ids"], batch["input_ids"], dataset, strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), 24]
            for a, b in pairwise(starts):
                alone = model(ids[None, a:b], use_cache=False).logits[0]
                torch.testing.assert_close(logits[a:b], alone, atol=1e-5, rtol=1e-4)


def talks(count: int) -> list[Record]:
    return [*(Record("made", tuple(turn(f"Q{i}", f"A{i}"))) for i in range(count)), Record("tale", text="Once.")]


def test_prepare_tokenises_and_packs(tokenizer: PreTrainedTokenizerFast):
    rows = prepare(talks(20), tokenizer, 256)
    expected = {tuple(encode(r, tokenizer).input_ids.tolist()) for r in talks(20)}
    assert expected <= {tuple(tokens) for tokens, _ in pieces(rows)}
    assert rows.stats.documents == 21


def test_the_cache_gives_the_same_rows_without_tokenising(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = prepare(talks(9), tokenizer, 64, cache_dir=tmp_path / "new")
    monkeypatch.setattr("depthdial.train.pack.encode_all", None)
    again = prepare(talks(9), tokenizer, 64, cache_dir=tmp_path / "new")
    assert again.stats == first.stats
    assert [p.suffix for p in (tmp_path / "new").iterdir()] == [".npz"]
    assert len(again) == len(first)
    assert all(torch.equal(first[i][name], again[i][name]) for i in range(len(first)) for name in first[i])


def test_any_other_input_makes_another_cache_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    prepare(talks(9), tokenizer, 64, cache_dir=tmp_path)
    prepare(talks(8), tokenizer, 64, cache_dir=tmp_path)
    prepare(talks(9), tokenizer, 65, cache_dir=tmp_path)
    prepare(talks(9), tokenizer, 64, seed=1, cache_dir=tmp_path)
    prepare(talks(9), tokenizer, 64, targets="all", cache_dir=tmp_path)
    prepare(talks(9), tokenizer, 64, separator=1, cache_dir=tmp_path)
    tokenizer.chat_template = f"{tokenizer.chat_template} "
    prepare(talks(9), tokenizer, 64, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_damaged_cache_file_is_made_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first = prepare(talks(9), tokenizer, 64, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", b"not a zip", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert prepare(talks(9), tokenizer, 64, cache_dir=tmp_path).stats == first.stats
        assert path.read_bytes() == whole
    assert caplog.text.count("unreadable cache file") == 3


def test_a_full_disk_leaves_nothing_behind_and_the_rows_usable(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(prepare(talks(9), tokenizer, 64, cache_dir=tmp_path)) > 0
    assert list(tmp_path.iterdir()) == []
    assert "rows not cached (No space left on device)" in caplog.text


def test_rows_are_not_filled_with_a_token_outside_the_embedding(tokenizer: PreTrainedTokenizerFast):
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    size, record = len(tokenizer) - 1, Record("tale", text="Once")
    assert tokenizer.pad_token_id == size
    assert int(prepare([record], tokenizer, 16).input_ids.max()) == size
    assert int(prepare([record], tokenizer, 16, vocabulary=size).input_ids.max()) < size
