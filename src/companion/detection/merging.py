"""What overlapping tiles show of the defects of a micrograph, merged: one piece per defect."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from companion.geometry import box_of

_SAME = 0.5  # share that two detections have in common above which they are one defect

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Piece:
    """What one tile shows of a defect, or the union of several.

    Attributes
    ----------
    mask : bool [h, w] where it is not empty, its top left pixel at (x, y) of the micrograph
    label, score : class code and confidence
    tile : box of its tile in the micrograph, px
    cut : whether a border of the tile cuts the defect
    """

    mask: NDArray[np.bool_]
    x: int
    y: int
    label: int
    score: float
    tile: Box
    cut: bool

    @property
    def box(self) -> Box:
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    def within(self, box: Box) -> NDArray[np.bool_]:
        """The part of the mask inside a box of the micrograph; empty where they do not meet."""
        x1, y1, x2, y2 = (max(0, edge - start) for edge, start in zip(box, (self.x, self.y) * 2, strict=True))
        return self.mask[y1:y2, x1:x2]


def piece_of(mask: NDArray[np.bool_], x: int, y: int, label: int, score: float, tile: Box, cut: bool) -> Piece:
    """`mask` with its top left pixel at (x, y), without its empty margins."""
    x1, y1, x2, y2 = box_of(mask)
    return Piece(mask[y1:y2, x1:x2].copy(), x + x1, y + y1, label, score, tile, cut)


def _shared(a: Piece, b: Piece) -> int:
    """Pixels that two masks share."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    both = max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2)
    if both[0] >= both[2] or both[1] >= both[3]:
        return 0
    return int((a.within(both) & b.within(both)).sum())


def _seen(a: Piece, b: Piece) -> int:
    """Pixels of `a` where the tiles of both see."""
    return int(a.within(b.tile).sum())


def merge(pieces: list[Piece]) -> list[Piece]:
    """One piece per defect, best score first.

    1. A whole piece beats the cut pieces that other tiles show of its defect: those of its class that lie in it for
       more than `_SAME`, those of another class only if the IoU of what both tiles see is above `_SAME` (a cut dot in a
       loop is none).
    2. The remaining cut pieces are united, see `_unite`.
    3. Of pieces with a mask IoU above `_SAME`, of any class and tile, the best stays: a detector suppresses boxes of
       one class only. A dot in a loop has a small IoU with it, and stays.
    """
    near = _neighbours(pieces)
    whole = [piece for piece in pieces if not piece.cut]
    cut = [
        piece for k, piece in enumerate(pieces)
        if piece.cut and not any(_shows(pieces[other], piece) for other in near[k] if not pieces[other].cut)
    ]  # fmt: skip
    pieces = sorted([*whole, *_unite(cut)], key=lambda piece: -piece.score)
    near, stays = _neighbours(pieces, own_tile=True), np.zeros(len(pieces), dtype=bool)
    for k, piece in enumerate(pieces):
        stays[k] = not any(_overlap(pieces[other], piece) > _SAME for other in near[k] if stays[other])
    return [piece for k, piece in enumerate(pieces) if stays[k]]


def _neighbours(pieces: list[Piece], own_tile: bool = False) -> list[list[int]]:
    """For each piece the others whose boxes overlap its own, those of its own tile only if asked for."""
    boxes = np.array([piece.box for piece in pieces], dtype=int).reshape(-1, 4)
    names: dict[Box, int] = {}
    tiles = np.array([names.setdefault(piece.tile, len(names)) for piece in pieces], dtype=int)
    apart = np.arange(len(pieces)) if own_tile else tiles
    x1, y1, x2, y2 = boxes.T
    return [
        np.flatnonzero((x1 < b[2]) & (b[0] < x2) & (y1 < b[3]) & (b[1] < y2) & (apart != own)).tolist()
        for b, own in zip(boxes, apart, strict=True)
    ]


def _overlap(a: Piece, b: Piece) -> float:
    """IoU of two masks."""
    shared = _shared(a, b)
    return shared / (a.area + b.area - shared)


def _shows(whole: Piece, cut: Piece) -> bool:
    """Whether `whole` shows the defect that `cut` shows a part of."""
    shared = _shared(whole, cut)
    if cut.label == whole.label:
        return shared > _SAME * cut.area
    return shared > _SAME * (_seen(whole, cut) + _seen(cut, whole) - shared)


def _unite(pieces: list[Piece]) -> list[Piece]:
    """Cut pieces of one defect as one: union of the masks, highest score.

    Two pieces of one class show one defect if they share more than `_SAME` of the smaller of the two parts that lie
    where their tiles overlap. Chains of such pairs unite, the most alike first; a link that would join defects that
    are two (see `_apart`) is left out.
    """
    links: list[tuple[float, int, int]] = []
    for k, others in enumerate(_neighbours(pieces)):
        for other in others:
            a, b = pieces[k], pieces[other]
            if other < k and a.label == b.label:
                shared, parts = _shared(a, b), (_seen(a, b), _seen(b, a))
                if shared > _SAME * min(parts):
                    links.append((shared / (sum(parts) - shared), k, other))
    groups = {k: [k] for k in range(len(pieces))}
    for _, k, other in sorted(links, key=lambda link: (-link[0], *link[1:])):
        one, two = groups[k], groups[other]
        if one is two:
            continue
        joined = [pieces[member] for member in one + two]
        if not any(_apart(pieces[a], pieces[b], joined) for a in one for b in two):
            groups |= dict.fromkeys(one + two, one + two)
    return [_union([pieces[k] for k in members]) for k, members in groups.items() if k == min(members)]


def _apart(a: Piece, b: Piece, joined: list[Piece]) -> bool:
    """Whether two pieces are two defects: one tile shows them one inside the other, or no other tile shows one."""
    if a.tile != b.tile:
        return False
    nested = _shared(a, b) > _SAME * min(a.area, b.area)
    return nested or not any(
        all(_shared(c, part) > _SAME * _seen(part, c) for part in (a, b)) for c in joined if c.tile != a.tile
    )


def _union(pieces: list[Piece]) -> Piece:
    boxes = np.array([piece.box for piece in pieces])
    x, y, right, bottom = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    mask = np.zeros((bottom - y, right - x), dtype=bool)
    for piece, (x1, y1, x2, y2) in zip(pieces, boxes, strict=True):
        mask[y1 - y : y2 - y, x1 - x : x2 - x] |= piece.mask
    best = max(pieces, key=lambda piece: piece.score)
    return replace(best, mask=mask, x=x, y=y)
