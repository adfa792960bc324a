"""Data files in place of the hub: every format, and one line for every way in which a file can be wrong."""

from __future__ import annotations

import gzip

import datasets
import pytest

from depthdial.evaluate.harness.data import FORMATS, DataFolder, check_rows

HUB = {
    "hellaswag": ("Rowan/hellaswag", None),
    "winogrande/winogrande_xl": ("allenai/winogrande", "winogrande_xl"),
    "gsm8k/main": ("openai/gsm8k", "main"),
    "openai_humaneval": ("openai/openai_humaneval", None),
    "coqa": ("EleutherAI/coqa", None),
    "ai2_arc/ARC-Easy": ("allenai/ai2_arc", "ARC-Easy"),
    "ai2_arc/ARC-Challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "piqa": ("baber/piqa", None),
    "super_glue/boolq": ("aps/super_glue", "boolq"),
    "lambada_openai/default": ("EleutherAI/lambada_openai", "default"),
    "openbookqa/main": ("allenai/openbookqa", "main"),
    "wikitext_document_level/wikitext-2-raw-v1": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),
    "mmlu": ("cais/mmlu", "anatomy"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(data_folder, name):
    folder = DataFolder(data_folder)
    assert folder.find(*HUB[name]) is FORMATS[name]
    result = folder.load(*HUB[name])
    evaluated = result["test"] if len(result.get("test", [])) else result["validation"]
    assert len(evaluated) > 1 and set(result) == set(FORMATS[name].splits)


def test_what_is_not_known_is_left_to_the_hub(data_folder):
    folder = DataFolder(data_folder)
    assert folder.find("aps/super_glue", "cb") is None and folder.find("some/other", None) is None


def test_a_missing_training_split_is_empty_and_of_the_same_columns(data_folder):
    result = DataFolder(data_folder).load("allenai/ai2_arc", "ARC-Easy")
    assert len(result["train"]) == 0 and result["train"].column_names == result["test"].column_names


def test_the_last_question_of_a_conversation_and_its_other_answers(data_folder):
    story = DataFolder(data_folder).load("EleutherAI/coqa", None)["validation"][0]
    assert len(story["questions"]["input_text"]) == len(story["answers"]["input_text"]) == 2
    assert story["additional_answers"]["0"]["input_text"] == ["the fox"] * 2
    assert story["additional_answers"]["1"]["input_text"] == ["dog"] * 2


def test_a_subject_has_its_own_rows_and_examples(data_folder):
    folder = DataFolder(data_folder)
    result = folder.load("cais/mmlu", "anatomy")
    assert len(result["test"]) == 4 and result["dev"]["subject"] == ["anatomy"]
    with pytest.raises(ValueError, match="no row whose subject is 'law'"):
        folder.load("cais/mmlu", "law")


def test_a_limit_cuts_what_is_evaluated_and_no_examples(data_folder):
    result = DataFolder(data_folder, limit=2).load("openai/gsm8k", "main")
    assert len(result["test"]) == 2 and len(result["train"]) == 8


@pytest.mark.parametrize("place", ["piqa_val.jsonl", "train/piqa_val.parquet"])
def test_other_places_and_kinds_of_files(tmp_path, piqa, place):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    table = datasets.Dataset.from_list(piqa)
    table.to_parquet(file) if file.suffix == ".parquet" else table.to_json(file)
    assert DataFolder(tmp_path).load("baber/piqa", None)["validation"].to_list() == piqa


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file for baber/piqa: it needs piqa_val\.jsonl\.gz"):
        DataFolder(tmp_path).load("baber/piqa", None)
    with pytest.raises(ValueError, match="is no folder"):
        DataFolder(tmp_path / "nowhere")


def test_a_file_that_is_cut_off(tmp_path, write_rows, piqa):
    file = write_rows(tmp_path / "piqa_val.jsonl.gz", piqa)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"piqa_val\.jsonl\.gz is cut off or corrupt"):
        check_rows(file, ())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"goal": 1, "sol1": 1}\n{"goal": 2', "line 2 is not JSON"),
        (b'{"goal": 1}\n', "line 1: lacks the column 'sol1'; it has goal"),
        (b"[1]\n", "line 1: lacks the column 'goal'; it has list"),
        (b"\n", "has no rows"),
        (b"\xff\xfe\n", "corrupt"),
        (b'{"goal": 1, "sol1": ' + b"[" * 99999, "line 1 cannot be read"),
        (b'{"goal": 1, "sol1": ' + b"9" * 9999 + b"}", "line 1 cannot be read"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, content, says):
    (tmp_path / "piqa_val.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        check_rows(tmp_path / "piqa_val.jsonl", ("goal", "sol1"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["piqa_val.jsonl", "piqa_val.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    content = b'\xef\xbb\xbf{"goal": "a"}\n{"goal": "b"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert check_rows(tmp_path / name, ("goal",)) == [{"goal": "a"}, {"goal": "b"}]


def test_a_parquet_file_that_is_none(tmp_path):
    (tmp_path / "piqa_val.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="corrupt"):
        check_rows(tmp_path / "piqa_val.parquet", ())


def test_a_column_of_another_kind(tmp_path, write_rows):
    write_rows(tmp_path / "coqa_dev.jsonl.gz", [{"id": 1, "story": "", "turns": [{"question": "?"}]}])
    with pytest.raises(ValueError, match="a row is not of the expected format"):
        DataFolder(tmp_path).load("EleutherAI/coqa", None)
