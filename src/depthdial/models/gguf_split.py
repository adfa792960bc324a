"""How a byte-level vocabulary's text is cut before its merges apply: `tokenizer.ggml.pre`, as llama.cpp knows it.

A file names the rule and does not hold it. A wrong rule gives tokens that the model never saw in training: 16 nats
worse on a list of five lines where digits should have been cut off one by one.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}"
_QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS}"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_BEFORE}{_CAPITALS}*{_SMALL}+|{_BEFORE}{_CAPITALS}+{_SMALL}*|\p{{N}}|{_SLASHED}"
_GPT4O = rf"{_BEFORE}{_CAPITALS}*{_SMALL}+{_SHORT}?|{_BEFORE}{_CAPITALS}+{_SMALL}*{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}"


class Rule(NamedTuple):
    """Cuts, one after the other, each within the pieces that the one before left."""

    cuts: tuple[str, ...]
    whole_words: bool = False
    """Is a piece that is a token taken as it is, whatever the merges make of it?"""
    begins: bool = False
    """Does a text begin with the token for it where the file does not say?"""

    def pre_tokenizer(self) -> PreTokenizer:
        split = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in self.cuts]
        return pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_RULES: dict[str, Rule] = {
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum": Rule((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": Rule((r"\p{N}", _GPT2)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": Rule((_LLAMA3,), True, True),
    "dbrx smaug-bpe": Rule((_LLAMA3,)),
    "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez": Rule((_QWEN2,)),
    "tekken": Rule((_TEKKEN,), True, True),
    "gpt-4o llama4 kanana2": Rule((_GPT4O,)),
    "falcon": Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "default": Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}

RULES: dict[str, Rule] = {name: rule for names, rule in _RULES.items() for name in names.split()}
"""By the name that a file gives."""
