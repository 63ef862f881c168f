"""What is asked to be evaluated, the maps as they are judged, and whether rows of these very maps are there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdad_bench import __version__, datasets
from kdad_bench.datasets import SQUASH, Category
from kdad_bench.harness.maps import Floats
from kdad_bench.harness.matching import Matched
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.protocol import PROTOCOL, PROTOCOL_VERSION
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.folder import MissingFolder
from kdad_bench.leaderboard.row import EXTERNAL

PREFIX = "external:"  # of the column `method`: no name of ours has a colon in it
Size = tuple[int, int]  # width, height


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a person wants evaluated."""

    maps: Path
    name: str
    options: RunOptions  # data set, categories, data root, modality, resolution, where rows go
    scores: Path | None = None
    seed: int = 0
    pictures: bool = True


class Loaded(NamedTuple):
    """The maps of a category in the order of its test images, and how large they were."""

    maps: Floats  # [N, H, W]: [N, R, R], or large enough for each picture, zero beside it
    scores: Floats | None  # [N]; None: none were given
    sizes: tuple[Size, ...]  # each once, the most frequent first
    shapes: NDArray[np.int64] | None = None  # [N, 2] height and width of each picture; None: all fill H x W
    same: bool = True  # no map was resampled
    constant: int = 0  # maps of one value
    turned: int = 0  # images that a camera's note turns

    def peaks(self) -> Floats:
        """[N] the highest value of each map."""
        if self.shapes is None:
            return np.asarray(self.maps.reshape(len(self.maps), -1).max(axis=1))
        own = zip(self.maps, self.shapes, strict=True)
        return np.array([one[:height, :width].max() for one, (height, width) in own], self.maps.dtype)


def content_of(loaded: Loaded) -> str:
    """SHA-256 of the maps and of the image scores in the type that they are judged in, 64 hex digits."""
    content = hashlib.sha256()
    for one in loaded.maps:
        content.update(np.ascontiguousarray(one).data)
    content.update(b"" if loaded.scores is None else loaded.scores.tobytes())
    return content.hexdigest()


class Same(NamedTuple):
    """What is known of maps that are there already."""

    content: str | None = None  # SHA-256 of these, where it was asked for
    faults: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()


class Known:
    """The external rows of a results folder. The maps of one are known by its job id, which is made of their hash."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        columns = (
            "job_id",
            "method",
            "dataset",
            "category",
            "seed",
            "origin",
            "resolution",
            "kdad_bench",
            "protocol_version",
            "data_fingerprint",
        )
        try:
            rows = store.read(asked.options.out, columns).rows()
        except MissingFolder:
            rows = []
        self.rows = [row for row in rows if row["origin"] == EXTERNAL]
        self.names = {
            (row["category"], row["data_fingerprint"]): row["dataset"]
            for row in rows
            if row["data_fingerprint"] is not None
        }

    def named(self, matched: Sequence[Matched]) -> tuple[Matched, ...]:
        """`matched` with the names that rows, of runs too, have for the same data: a moved folder keeps its own."""
        chosen = [one.category for one in matched]
        places = {(one.name, one.dataset) for one in chosen}
        here = {one.name for one in chosen}
        if not any(name in here and (name, dataset) not in places for (name, _), dataset in self.names.items()):
            return tuple(matched)  # no file needs to be read for this
        found = zip(matched, datasets.under_known_names(chosen, self.names), strict=True)
        return tuple(replace(one, category=category) for one, category in found)

    def about(self, category: Category, loaded: Loaded) -> Same:
        """Whether these maps are those of another row, and whether some are those of several images.

        The maps of another seed of the name are a fault: a spread over seeds would be one over nothing.
        """
        twins = equal_maps(loaded)
        notes: tuple[str, ...] = (f"maps: {twins} are, pixel by pixel, those of another image",) if twins else ()
        side, place = self.asked.options.resolution or PROTOCOL.resolution, (category.dataset, category.name)
        near = [row for row in self.rows if (row["dataset"], row["category"], row["resolution"]) == (*place, side)]
        near = [row for row in near if (row["method"], row["seed"]) != (PREFIX + self.asked.name, self.asked.seed)]
        if not near:
            return Same(readings=notes)
        content, data = content_of(loaded), datasets.fingerprint(datasets.hashed(category))
        same = [row for row in near if row["job_id"] == identity(category, content, data, self.asked, row)]
        faults = tuple(
            f"{category.dataset}/{category.name}: these are the maps of {self.asked.name} seed {row['seed']} (job "
            f"{row['job_id']}); another seed is another training: give its maps, or --seed {row['seed']}"
            for row in same
            if row["method"] == PREFIX + self.asked.name
        )
        others = sorted(f"{row['method']} seed {row['seed']}" for row in same)
        notes += (f"maps: the same as those of {', '.join(others)}",) if others else ()
        return Same(content, faults[:1], notes)


def equal_maps(loaded: Loaded) -> int:
    """How many maps are equal to one before them."""
    alike: dict[bytes, list[int]] = {}
    for number, one in enumerate(loaded.maps):
        alike.setdefault(one[len(one) // 3].tobytes(), []).append(number)  # one line tells nearly all apart
    several = [[loaded.maps[number].tobytes() for number in numbers] for numbers in alike.values() if len(numbers) > 1]
    return sum(len(maps) - len(set(maps)) for maps in several)


def identity(category: Category, content: str, data: str, asked: Asked, row: Mapping[str, Any] | None = None) -> str:
    """16 hex digits: the same maps of the same images judged by the same rules are the same job.

    With a `row`: its id, were it of these maps.
    """
    facts: dict[str, Any] = {
        "kdad_bench": row["kdad_bench"] if row else __version__,
        "protocol": row["protocol_version"] if row else PROTOCOL_VERSION,
        "external": row["method"].removeprefix(PREFIX) if row else asked.name,
        "dataset": category.dataset.partition(":")[0],
        "category": category.name,
        "modality": category.modality,
        "data": data,
        "seed": row["seed"] if row else asked.seed,
        "resolution": asked.options.resolution or PROTOCOL.resolution,
        "maps": content,
        **({"fit": asked.options.fit} if asked.options.fit != SQUASH else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
