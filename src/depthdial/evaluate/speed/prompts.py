"""What the benchmark's models read: ordinary prose, code and a table, so that routers decide as they do in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PASSAGES = (
    "The lighthouse stood at the end of a long spit of gravel, and in winter the road to it was under water twice a "
    "day. Anna kept a tide table pinned beside the door, next to a list of what the boat was to bring: flour, lamp "
    "oil, two reels of wire, a letter if there was one. She had been a telegraph operator before she came here, and "
    "at night she still heard the clicking in the ropes against the mast.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n\n\n"
    "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n"
    "        self.balance = balance\n\n    def withdraw(self, amount):\n        if amount > self.balance:\n"
    "            raise ValueError('not enough money')\n        self.balance -= amount\n        return self.balance\n",
    "Water boils at a lower temperature on a mountain because the air presses on it less. At sea level the pressure "
    "is about 101 kilopascals and water boils at 100 degrees; at 3,000 metres it is about 70 kilopascals and 90 "
    "degrees are enough. Food therefore takes longer to cook, since what cooks it is heat and not bubbles. A pressure "
    "cooker does the opposite: its lid holds the steam in, and the water inside reaches 120 degrees.",
    "| city | population | founded | river |\n|---|---|---|---|\n| Vienna | 2,006,000 | 15 BC | Danube |\n"
    "| Hamburg | 1,910,000 | 808 | Elbe |\n| Lyon | 522,000 | 43 BC | Rhone |\n| Porto | 248,000 | 868 | Douro |\n"
    "| Riga | 605,000 | 1201 | Daugava |\n| Krakow | 804,000 | 1257 | Vistula |\n",
    "Q: How do I keep bread from going stale?\nA: Wrap it in cloth and keep it in a box at room temperature; a fridge "
    "makes it stale faster, because starch hardens most quickly just above freezing. For more than three days, slice "
    "it and freeze it, and toast the slices as you need them.\n\nQ: Can I save bread that is hard already?\n"
    "A: Sprinkle it with water and bake it at 180 degrees for five minutes, then eat it soon.",
    "The committee met on Tuesday to decide about the bridge. The engineer said that the northern pier had moved by "
    "four centimetres since the flood and that traffic should be limited to one lane until it was measured again. The "
    "treasurer asked what a temporary support would cost, and was told about a third of the yearly budget for roads. "
    "After an hour they agreed to close the bridge to lorries and to meet again when the surveyor had reported.",
)


def prompts(tokenizer: Any, lengths: Sequence[int], text: str | None = None) -> list[list[int]]:
    """One prompt of token ids for each length, each from another place of the text; None: the passages above.

    A text shorter than a prompt is read again from its beginning. Raises ValueError for an empty one.
    """
    source = "\n\n".join(PASSAGES) if text is None else text
    ids: list[int] = tokenizer(source, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise ValueError("the text of the prompts is empty; give a file with some sentences")
    result, start = [], 0
    for length in lengths:
        around = ids[start:] + ids * (length // len(ids) + 1)
        result.append(around[:length])
        start = (start + length) % len(ids)
    return result


def prompt_lengths(batch: int, prompt: int) -> list[int]:
    """Lengths of a batch's prompts, `prompt` at most: texts that decode together are seldom at the same place."""
    return [max(1, prompt - 5 * (i % 4) - i % 3) if batch > 1 else prompt for i in range(batch)]
