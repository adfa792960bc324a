"""The training files once more as plain text: passages, questions and answers without the chat template.

    python recipes/plain_text.py DATA_FOLDER OUTPUT_FOLDER

A plug-in trained on conversations alone meets a plain "Question: ... Answer:" for the first time in a benchmark
(docs/log.md). Four files, one JSON object {"source", "text"} a line: passage (alone), dialogue (a passage with its
questions and answers), short (four to twelve short questions with answers), single (one question and its answer). Rows
are those that recipes/smollm2.py trains on: no share-alike source, no test split, nothing that its split holds out.
"""

import argparse
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from smollm2 import SHARE_ALIKE, TWICE_OR_TEST

from depthdial.core.whole import whole
from depthdial.train.data import Record, holdout

WITH_PASSAGE = ("p3/quoref", "p3/duorc", "p3/ropes", "p3/cosmos_qa", "p3/quartz")
SHORT = ("p3/commonsense_qa", "p3/qasc", "p3/social_i_qa", "p3/quartz", "p3/cosmos_qa", "flan_cot/strategyqa",
         "flan_cot/creak", "flan_cot/qasc")  # fmt: skip
FORMS = (("Q: ", "\n\nA: ", "\n\n"), ("Question: ", "\nAnswer: ", "\n\n"), ("Q: ", "\nA: ", "\n\n"))
LEAD = re.compile(r"^[A-Z][A-Za-z ]{2,60}: ")  # "Context: ", "I read this background article the other day: "
QUESTION = re.compile(r"[A-Z][^.!?:\n]{8,}\?")
Pair = tuple[str, str]


def rows(file: Path) -> Iterator[dict[str, str]]:
    dropped = (*SHARE_ALIKE, *TWICE_OR_TEST)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            source = row.get("source", file.name.partition(".")[0])
            if not any(fnmatchcase(source, pattern) for pattern in dropped) and not held_out(row, source):
                yield {**row, "source": source}


def held_out(row: dict[str, str], source: str) -> bool:
    """Whether training holds this conversation out, so that its text must not come back in another form."""
    first = {"role": "user", "content": row.get("prompt") or row["question"]}
    return bool(holdout([Record(source, (first,))], 0.01)[1])


def asked(prompt: str, passage: str) -> str | None:
    """The question in a prompt of P3, outside its passage: the last that ends in a question mark."""
    found = QUESTION.findall(prompt.replace(passage, "\n"))
    return found[-1].strip() if found else None


def told(pairs: list[Pair], rng: random.Random, before: str = "") -> str:
    ask, answer, end = rng.choice(FORMS)
    return before + "".join(f"{ask}{q}{answer}{a}{end}" for q, a in pairs).rstrip()


def documents(data: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, text) of all documents, kind after kind."""
    passages: dict[str, list[Pair]] = defaultdict(list)
    short: list[Pair] = []
    for row in rows(data / "p3_t0_sample.jsonl.gz"):
        prompt, answer = row["prompt"].strip(), row["completion"].strip()
        passage = max(prompt.split("\n"), key=len).strip()
        has_passage = row["source"] in WITH_PASSAGE and len(passage) > 300
        question = asked(prompt, passage if has_passage else "")
        if has_passage:
            words = question and 1 < len(answer) < 100 and "None of the above" not in answer
            passages[LEAD.sub("", passage)] += [(question, answer)] if question and words else []
        elif row["source"] in SHORT and len(prompt) < 400 and len(answer) < 100:
            short.append((question if question and rng.random() < 0.5 else prompt, answer))
        elif answer:
            yield "single", told([(prompt, answer)], rng)
    for row in rows(data / "flan_cot.jsonl.gz"):
        if row["source"] in SHORT and len(row["prompt"]) < 400:
            short.append((row["prompt"], row["answer"]))
        yield "single", told([(row["prompt"], f"{row['rationale']} {row['answer']}")], rng)
    for row in rows(data / "gsm8k_train.jsonl.gz"):
        yield "single", told([(row["question"], row["answer"])], rng)
    for passage, pairs in passages.items():
        yield "passage", passage
        if pairs:
            yield "dialogue", told(list(dict.fromkeys(pairs)), rng, passage + "\n\n")
    rng.shuffle(short)
    while short:
        yield "short", told([short.pop() for _ in range(min(len(short), rng.randint(4, 12)))], rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kinds: dict[str, list[str]] = defaultdict(list)
    for kind, text in documents(args.data, random.Random(args.seed)):
        kinds[kind].append(text)
    args.output.mkdir(parents=True, exist_ok=True)
    for kind, texts in kinds.items():
        with (
            whole(args.output / f"{kind}.jsonl.gz") as part,
            gzip.open(part, "wt", encoding="utf-8") as file,
        ):
            file.writelines(json.dumps({"source": f"plain/{kind}", "text": text}) + "\n" for text in texts)
        print(f"{kind}: {len(texts):,} documents, {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    main()
