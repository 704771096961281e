"""Where rows may enter a pass through a model's blocks, so that they compute only what comes after.

Points are counted through all blocks; a row that enters at a point has computed nothing before it. A model's own code
is entered between blocks; the compiled kernels, which compute place by place, after any place of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from vectors.vocabulary import Place, Site


@dataclass(frozen=True, slots=True)
class EntryPoints:
    """The points of `num_blocks` blocks, each of which may be left after `sites`, in the order of their computation."""

    num_blocks: int
    sites: tuple[Site, ...] = ("residual",)

    @property
    def num_points(self) -> int:
        """Points before the end, which is one too: what enters there computes no block."""
        return self.num_blocks * len(self.sites)

    def of_block(self, block: int) -> int:
        """The point at the input of `block`."""
        return block * len(self.sites)

    def after(self, place: Place) -> int:
        """The last point at which a row that is changed at `place` may enter; the change is then made there."""
        site, layer = place
        return self.of_block(layer) + (self.sites.index(site) + 1 if site in self.sites else 0)
