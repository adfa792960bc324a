"""The tokenizer that a GGUF file describes: vocabulary, merges, how text is cut, and the tokens that mean something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from depthdial.models.foreign import shown
from depthdial.models.gguf_file import Damaged, Unsupported
from depthdial.models.gguf_keys import Keys
from depthdial.models.gguf_split import RULES, Rule

_NORMAL, _UNKNOWN, _CONTROL, _OWN, _UNUSED, _BYTE = range(1, 7)  # kinds of tokens; 4: matched whole, but ordinary text
_SPACE = "▁"
_ENDS = ("eos", "eot", "eom")
"""End of text, of a turn, of a message."""
_DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}
"""Of llama.cpp, where a file does not say."""


class Words(NamedTuple):
    """A tokenizer, the ids that a configuration names, and what the user is to know."""

    tokenizer: PreTrainedTokenizerBase
    special: dict[str, int | None]
    """`bos_token_id`, `eos_token_id`, `pad_token_id`."""
    ends: list[int]
    """Every token that ends a text, the first of them `eos_token_id`."""
    notes: list[str]


def tokenizer_of(keys: Keys, context: int) -> Words:
    """Read all `tokenizer.*` keys. Raises Damaged or Unsupported, naming the key."""
    kind = keys.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise Unsupported(f"tokenizer.ggml.model {shown(kind)!r} is not supported; gpt2 and llama are")
    tokens = _list(keys, "tokens", str)
    kinds = _list(keys, "token_type", int, len(tokens)) or [_NORMAL] * len(tokens)
    ids = _special(keys, len(tokens), _DEFAULTS.get(kind, {}))
    notes: list[str] = []
    if kind == "gpt2":
        rule = _rule(keys, notes)
        backend = _byte_level(keys, tokens, kinds, rule)
    else:
        keys.get("tokenizer.ggml.pre")  # says nothing of these
        rule = Rule((), begins=True)
        backend = _sentence_piece(keys, tokens, kinds)
    _add_whole(backend, tokens, kinds)
    begin = keys.flag("tokenizer.ggml.add_bos_token", rule.begins)
    end = keys.flag("tokenizer.ggml.add_eos_token", False)
    for key in ("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.add_sep_token"):
        if keys.flag(key, False):
            raise Unsupported(f"{key} is not supported")
    if keys.get("tokenizer.ggml.precompiled_charsmap"):
        raise Unsupported("tokenizer.ggml.precompiled_charsmap is not supported for this kind of vocabulary")
    ends = [ids[role] for role in _ENDS if role in ids]
    if not ends:
        notes.append("names no token that ends a text")
    words = {f"{role}_token": tokens[ids[its]] for role, its in _ROLES.items() if its in ids}
    if "eos" not in ids and ends:
        words["eos_token"] = tokens[ends[0]]
    for role, asked in (("bos", begin), ("eos", end)):
        if asked and f"{role}_token" not in words:
            raise Damaged(f"tokenizer.ggml.add_{role}_token is set, and there is no {role}_token_id")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context,
        add_bos_token=begin,
        add_eos_token=end,
        clean_up_tokenization_spaces=False,
        **words,
    )
    tokenizer.chat_template = keys.text("tokenizer.chat_template", "") or None
    special = {
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ends[0] if ends else None,
        "pad_token_id": ids.get("padding"),
    }
    return Words(tokenizer, special, list(dict.fromkeys(ends)), notes)


_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _list(keys: Keys, name: str, of: type, length: int | None = None) -> Any:
    """A list of the vocabulary's; None where it may be missing (a length is given) and is."""
    key = f"tokenizer.ggml.{name}"
    found = keys.get(key)
    if found is None and length is not None:
        return None
    if not isinstance(found, list) or not found or not all(isinstance(one, of) for one in found):
        raise Damaged(f"{key} is {'missing' if found is None else f'no list of {of.__name__}'}")
    if length is not None and len(found) != length:
        raise Damaged(f"{key} has {len(found)} entries for {length} tokens")
    return found


def _special(keys: Keys, tokens: int, defaults: dict[str, int]) -> dict[str, int]:
    """The ids that the file gives to roles."""
    found = {}
    for role in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        index = keys.get(key := f"tokenizer.ggml.{role}_token_id", defaults.get(role))
        if index is None:
            continue
        if isinstance(index, bool) or not isinstance(index, int):
            raise Damaged(f"{key} is {shown(repr(index))}, not a token")
        if not 0 <= index < tokens:
            raise Damaged(f"{role}_token_id {index} lies outside of the vocabulary of {tokens} ({key})")
        found[role] = index
    return found


def _rule(keys: Keys, notes: list[str]) -> Rule:
    name = keys.text("tokenizer.ggml.pre", "default")
    if name not in RULES:
        raise Unsupported(f"tokenizer.ggml.pre {shown(name)!r}: this rule of splitting text is not known")
    if name == "default":
        notes.append("does not say how text is split (tokenizer.ggml.pre); llama.cpp's default is used")
    return RULES[name]


def _byte_level(keys: Keys, tokens: Sequence[str], kinds: Sequence[int], rule: Rule) -> Tokenizer:
    if keys.flag("tokenizer.ggml.add_space_prefix", False):
        raise Unsupported("tokenizer.ggml.add_space_prefix is not supported for this kind of vocabulary")
    keys.get("tokenizer.ggml.scores")  # merges say it all
    letters = _letters()
    plain = set(letters)
    vocabulary: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        whole = kind in (_CONTROL, _OWN) or set(token) <= plain
        vocabulary.setdefault(token if whole else "".join(letters[byte] for byte in token.encode()), index)
    merges = _merges(_list(keys, "merges", str), vocabulary)
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.whole_words))
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(keys: Keys, tokens: list[str], kinds: Sequence[int]) -> Tokenizer:
    gemma = keys.arch.startswith("gemma")
    prefix = keys.flag("tokenizer.ggml.add_space_prefix", not gemma)
    if gemma:  # it writes runs of spaces as spaces, and its merges follow its order
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocabulary.setdefault(token, index)
    scores = _list(keys, "scores", float, len(tokens))
    if gemma:  # not by its scores
        scores = [-index for index in range(len(tokens))]
    if keys.get("tokenizer.ggml.merges") is not None:
        merges = _merges(_list(keys, "merges", str), vocabulary)
    elif scores is not None:
        merges = _merges_by(scores, tokens, vocabulary)
    else:
        raise Damaged("tokenizer.ggml.scores is missing")
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    if gemma:
        if prefix:
            raise Unsupported(f"tokenizer.ggml.add_space_prefix is not supported for {keys.arch}")
        backend.normalizer = normalizers.Sequence(spaces)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def _add_whole(backend: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Control tokens and user-defined ones are matched whole in a text, before anything cuts it."""
    known = backend.get_vocab(with_added_tokens=False)
    for kind, special in ((_CONTROL, True), (_OWN, False)):
        chosen = [token for token, its in zip(tokens, kinds, strict=True) if its == kind and token in known]
        added = [AddedToken(token, normalized=False, special=special) for token in chosen]
        (backend.add_special_tokens if special else backend.add_tokens)(added)


def _merges(given: Sequence[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    found = []
    for merge in given:
        left, _, right = merge[1:].partition(" ")
        pair = (merge[:1] + left, right)
        if pair[0] not in vocabulary or pair[1] not in vocabulary or pair[0] + pair[1] not in vocabulary:
            raise Damaged(f"tokenizer.ggml.merges: {shown(merge)!r} does not join two tokens to a third")
        found.append(pair)
    return found


def _merges_by(scores: Sequence[float], tokens: Sequence[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """What sentencepiece does without merges: of all joins of two tokens to a third, the best one first."""
    found = []
    for token, score in zip(tokens, scores, strict=True):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        joins = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        joins.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in joins]
    found.sort(key=lambda join: join[:3], reverse=True)
    return [join[3:] for join in found]


def _letters() -> list[str]:
    """The sign that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
