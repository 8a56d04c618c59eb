"""How large the block of keys and values is: so many rows of so many tokens, never more than there is memory for."""

from __future__ import annotations

from typing import NamedTuple

GROWTH = 256  # tokens: capacities are multiples of it, where there is memory for that


class Block(NamedTuple):
    """A number of rows, and the tokens that each of them has a place for."""

    rows: int
    capacity: int

    def grown(self, rows: int, length: int, most: int) -> Block:
        """The block for ``rows`` rows, the longest of ``length`` tokens: this one if they have a place in it, else a
        new one. Its size is that of what is in use, since all of it is copied anyway; rows are doubled and the capacity
        grows by half, so that copies are rare, but not beyond ``most`` tokens in all rows together."""
        if rows <= self.rows and length <= self.capacity:
            return self
        count = 1 << (rows - 1).bit_length()
        ahead = self.capacity * 3 // 2 if length > self.capacity else 0
        capacity = -(-max(length, ahead) // GROWTH) * GROWTH
        if count * capacity > most:
            count, capacity = rows, max(length, min(capacity, most // rows))
        return Block(count, capacity)


EMPTY = Block(0, 0)
