"""How a product is cut into tiles, by the number of rows: one of a few, or hundreds; and the product of two tiles."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from triton import knobs

INTERPRETED: tl.constexpr = tl.constexpr(bool(knobs.runtime.interpret))
FEW = 16
"""Up to so many rows a pass is bound by the weights it reads: norms are folded into the products that follow them."""
SMALLEST = 16
"""The least side of a tile that tensor cores take."""


class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def fitted(self, columns: int, depth: int) -> Tile:
        """No larger than a weight [columns, depth] needs."""
        return self._replace(
            columns=min(self.columns, max(SMALLEST, triton.next_power_of_2(columns))),
            depth=min(self.depth, max(SMALLEST, triton.next_power_of_2(depth))),
        )


class Tiles(NamedTuple):
    """One tile for each kind of product: `pair` reads two weights at once (gate and up), `narrow` is for weights of few
    columns, which would not fill the device."""

    linear: Tile
    narrow: Tile
    pair: Tile
    down: Tile
    head: Tile


def tiles_for(rows: int) -> Tiles:
    """The tiles of a decode pass of `rows` rows.

    Few rows: enough bytes in flight in each multiprocessor is all that counts, so weight tiles are narrow and deep.
    """
    if rows <= FEW:
        few = Tile(SMALLEST, 32, 256, 4, 4)
        pair = few._replace(depth=128)
        return Tiles(few, Tile(SMALLEST, 16, 256, 2, 4), pair, few, few._replace(columns=64, depth=128))
    if rows <= 64:
        some = Tile(triton.next_power_of_2(rows), 64, 64, 4, 4)
        return Tiles(some, some, some, some, some)
    many = Tile(64, 128, 64, 4, 4)
    return Tiles(many, many._replace(columns=64), many._replace(warps=8), many, many)


@triton.jit
def dot(a, b, sums):
    """sums (fp32) + a @ b, without rounding fp32 to tf32."""
    if INTERPRETED:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        sums = tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    else:
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums
