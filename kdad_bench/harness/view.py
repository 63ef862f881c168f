"""How a job sees an image: what it is brought to, and whether the method is given it whole or window by window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdad_bench.datasets import PAD, SHORT_SIDE, SQUASH
from kdad_bench.harness.choices import SelectionError
from kdad_bench.methods import entry
from kdad_bench.methods.protocol import WHOLE_IMAGES


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A property of the job. The default is the whole image squeezed into a square, as it was before there were others.

    `overlap` None with windows: a quarter of a window.
    """

    fit: str = SQUASH  # one of datasets.FITS
    tile: int | None = None  # side of a tile, px at the resolution; None: whole images
    overlap: int | None = None  # px by which neighbouring windows overlap at least

    @property
    def plain(self) -> bool:
        """Whether methods see whole squares."""
        return not self.used

    @property
    def used(self) -> dict[str, Any]:
        """What is not the default."""
        said = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return {name: value for name, value in said.items() if (name, value) != ("fit", SQUASH)}

    @property
    def columns(self) -> dict[str, Any]:
        """The same as columns of a row."""
        return {"fit": None if self.fit == SQUASH else self.fit, "tile": self.tile, "tile_overlap": self.overlap}

    @property
    def label(self) -> str:
        """How people read it: `fit=pad,overlap=32,tile=128`; nothing for whole squares."""
        return ",".join(f"{name}={value}" for name, value in sorted(self.used.items()))

    def side(self, resolution: int) -> int:
        """The side of the squares that a method sees, px."""
        return self.tile or resolution

    def least_overlap(self, resolution: int) -> int:
        """By how many px neighbouring windows overlap at least."""
        return self.side(resolution) // 4 if self.overlap is None else self.overlap

    @property
    def given(self) -> str:
        """What a method is handed, in words."""
        if self.tile is not None:
            return "tiles"
        return {SHORT_SIDE: "squares of images", PAD: "padded images"}.get(self.fit, WHOLE_IMAGES)

    @property
    def deviations(self) -> Iterator[str]:
        """What papers do otherwise, in the words of a row's deviations."""
        if self.fit != SQUASH:
            how = "the longer one, mirrored to a square" if self.fit == PAD else "the shorter one, seen in squares"
            yield f"fit: {self.fit}, the resolution is the side of {how} (papers: squares)"
        if self.tile is not None:
            yield f"tile: learnt and scored in tiles of {self.tile} px (papers: whole images)"
        if not self.plain:
            yield (
                "image score: "
                + ("of the map without its padding" if self.fit == PAD else "of the stitched map")
                + " where it is the map's maximum or mean, else "
                + ("the map's maximum" if self.fit == PAD else "the highest of the windows'")
            )


WHOLE = View()


def view_of(row: Mapping[str, Any]) -> View:
    """How the job of a row saw its images."""
    return View(fit=row["fit"] or SQUASH, tile=row["tile"], overlap=row["tile_overlap"])


def refuse_what_cannot_be_seen(view: View, resolution: int, methods: Iterable[str] = ()) -> None:
    """Raises SelectionError for tiles larger than the images, for an overlap without windows or of most of one, and for
    windows with a method that needs whole images."""
    for name in methods if view.tile is not None or view.fit == SHORT_SIDE else ():
        if why := entry(name).whole:
            option = f"--fit {view.fit}" if view.tile is None else f"--tile {view.tile}"
            raise SelectionError(f"{option}: method '{name}' cannot see images in windows: {why}; leave it or them out")
    if view.tile is not None and view.tile > resolution:
        raise SelectionError(
            f"--tile {view.tile}: larger than the images at --resolution {resolution}; take a smaller tile or a higher "
            "resolution"
        )
    if view.overlap is None:
        return
    if view.tile is None and view.fit != SHORT_SIDE:
        raise SelectionError(f"--overlap {view.overlap}: there is one window only; add --tile or --fit short-side")
    side = view.side(resolution)
    if 2 * view.overlap > side:
        raise SelectionError(
            f"--overlap {view.overlap}: more than half of the {side} px of a tile; take {side // 2} at most"
        )
    if view.tile == resolution and view.fit != SHORT_SIDE:
        raise SelectionError(
            f"--overlap {view.overlap}: there is one window only, a tile of {view.tile} px is a whole image at "
            f"--resolution {resolution}; take a smaller tile, or leave --overlap out"
        )
