"""Do the intervals of the leaderboard hold what they promise? Simulated benchmarks whose truth is known.

    python benchmarks/coverage.py                    # 2,000 benchmarks of each kind
    python benchmarks/coverage.py --workers 2 --keep coverage.jsonl --write docs/protocol.md

With --keep a run that was stopped goes on: each line is one column of one world, and counts while the code that draws
the pages is the same.

A job's scores are normal: those of good images around 0, those of anomalous ones around d, of standard deviation 1,
with a part that the image brings for every method and seed (hard images are hard for all), one that it brings for all
seeds of a method, and one of the seed. Then the AUROC that infinitely many images would show is Phi(d / sqrt 2). d is
drawn: a level of the method, a part of the category, a part of the method in that category, a part of the seed. The
intervals come from the functions that draw the pages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard import images as image_noise
from kdad_bench.leaderboard import inference, pairs, student_t
from kdad_bench.leaderboard import spread as spreads
from kdad_bench.leaderboard.images import Images, Noise, placements
from kdad_bench.leaderboard.inference import CONFIDENCE, interval_across, interval_around
from kdad_bench.leaderboard.pairs import Comparison, compared
from kdad_bench.leaderboard.spread import Drawn, drawn, half_across, parts, spread

Floats = NDArray[np.float64]
METRIC = "image_auroc"
PHI = NormalDist().cdf
FOR_ALL, FOR_METHOD = 0.4, 0.35  # shares of the variance of a score that the image brings for all, and for a method
RESAMPLES = 400  # of the hierarchical bootstrap, which no page uses
MARKS = re.compile(r"(<!-- coverage: begin -->\n).*?(<!-- coverage: end -->)", re.S)


@dataclass(frozen=True)
class World:
    """What the simulated benchmarks are like. Parts of d are standard deviations."""

    name: str
    categories: int = 4
    seeds: int = 2
    anomalous: int = 24
    good: int = 12
    levels: tuple[float, float] = (2.4, 2.0)  # of the two methods
    category: float = 0.5
    own: float = 0.2  # of a method in a category
    seed: float = 0.15
    together: bool = False  # one training of each seed serves all categories
    alike: float = 0.0  # share of the variance of `seed` that a training brings to all its categories


WORLDS = (
    World("embedded data: 4 categories, 2 seeds, 24 + 12 images"),
    World("the same, equal methods", levels=(2.2, 2.2), own=0.0),
    World("the same, one seed, which is what is asked about", seeds=1, seed=0.0),
    World("near 1: AUROC 0.985 and 0.97", levels=(3.07, 2.66), category=0.3),
    World("3 categories, 3 seeds, 63 + 20 images", categories=3, seeds=3, anomalous=63, good=20),
    World("15 categories, 3 seeds, 84 + 31 images", categories=15, seeds=3, anomalous=84, good=31),
    World("seeds differ much", seed=0.5),
    World("categories alike", category=0.05, own=0.02),
    World("6 categories near 1", categories=6, levels=(3.07, 2.66), category=0.3),
    World("one model for 4 categories, 3 seeds, equal", seeds=3, levels=(2.2, 2.2), own=0.0, together=True, alike=0.5),
    World(
        "one model for 15, 3 seeds, 84 + 31 images, equal", categories=15, seeds=3, anomalous=84, good=31,
        levels=(2.2, 2.2), own=0.0, together=True, alike=0.5,
    ),
)  # fmt: skip


def of_seeds_alike(world: World, methods: int, rng: np.random.Generator) -> Floats:
    """What the seeds bring, [methods, categories, seeds], of variance 1."""
    found = rng.normal(size=(methods, world.categories, world.seeds))
    if world.alike:
        common = rng.normal(size=(methods, 1, world.seeds))
        found = np.sqrt(1 - world.alike) * found + np.sqrt(world.alike) * common
    return np.asarray(found)


def truth(distance: Floats | float, variance: float) -> Floats:
    """The mean AUROC over d of that mean and variance."""
    return np.vectorize(PHI)(np.asarray(distance) / np.sqrt(2 + variance))


def scored(world: World, distances: Floats, rng: np.random.Generator) -> list[Images]:
    """The images of each category; `distances` [methods, categories, seeds]."""
    labels = np.arange(world.anomalous + world.good) < world.anomalous
    found = []
    for c in range(world.categories):
        every, method = rng.normal(size=labels.size), rng.normal(size=(len(distances), 1, labels.size))
        own = rng.normal(size=(*distances[:, c].shape, labels.size))
        noise = np.sqrt(FOR_ALL) * every + np.sqrt(FOR_METHOD) * method + np.sqrt(1 - FOR_ALL - FOR_METHOD) * own
        scores = noise + distances[:, c, :, None] * labels
        jobs = {("ab"[m], s): scores[m, s] for m in range(len(scores)) for s in range(world.seeds)}
        found.append(Images(labels=labels, scores=jobs))
    return found


def figures(world: World, images: list[Images]) -> Floats:
    """The AUROC of each job, [methods, categories, seeds]: the share of pairs in order."""
    labels = images[0].labels
    methods = sorted({method for method, _ in images[0].scores})
    scores = np.array([[[one.scores[m, s] for s in range(world.seeds)] for one in images] for m in methods])
    return (scores[..., labels][..., :, None] > scores[..., ~labels][..., None, :]).mean(axis=(-1, -2))


def judged(world: World, values: Floats, images: list[Images] | None) -> Comparison:
    """The comparison of the two methods as the pages have it."""
    noises: list[Noise | None] = [None] * world.categories
    for c, one in enumerate(images or ()):
        noises[c] = one.noise(METRIC, {(m, s): values[i, c, s] for i, m in enumerate("ab") for s in range(world.seeds)})
    seeds = range(world.seeds)
    return compared(METRIC, ("a", "b"), (values[0], values[1]), seeds, noises, 1, together=world.together)


def alone(world: World, values: Floats, images: list[Images]) -> list[Drawn]:
    """What the images do to one method, by category."""
    jobs = [("a", s) for s in range(world.seeds)]
    noises = [one.noise(METRIC, {job: values[c, s] for s, job in enumerate(jobs)}) for c, one in enumerate(images)]
    return [part for noise in noises if noise is not None and (part := drawn(noise, jobs)) is not None]


def of_these(world: World, benchmarks: int, rng: np.random.Generator) -> tuple[float, float]:
    """(coverage of the interval of a method's mean over fixed categories, its median width)."""
    category, own = rng.normal(size=(2, 1, world.categories, 1))
    fixed = world.levels[0] + world.category * category + world.own * own
    true = float(truth(fixed[..., 0], world.seed**2).mean())
    inside, widths = 0, []
    for _ in range(benchmarks):
        images = scored(world, fixed + world.seed * of_seeds_alike(world, 1, rng), rng)
        values = figures(world, images)[0]
        around = spread(list(values), alone(world, values, images), together=world.together)
        if around is None:  # every image in order everywhere: the pages show no interval
            continue
        low, high = interval_around(float(values.mean()), around.half_width(CONFIDENCE))
        inside += low <= true <= high
        widths.append(high - low)
    return inside / len(widths), float(np.median(widths))


def of_pairs(world: World, benchmarks: int, rng: np.random.Generator) -> tuple[float, float]:
    """(coverage of the interval of the difference on fixed categories, share of benchmarks whose p is below 0.05)."""
    category, own = rng.normal(size=(1, world.categories, 1)), rng.normal(size=(2, world.categories, 1))
    fixed = np.array(world.levels)[:, None, None] + world.category * category + world.own * own
    true = truth(fixed[..., 0], world.seed**2)
    true = float((true[0] - true[1]).mean())
    inside = sure = 0
    for _ in range(benchmarks):
        images = scored(world, fixed + world.seed * of_seeds_alike(world, 2, rng), rng)
        found = judged(world, figures(world, images), images)
        inside += found.low is not None and found.high is not None and found.low <= true <= found.high
        sure += found.p is not None and found.p < 0.05
    return inside / benchmarks, sure / benchmarks


def of_seeds(world: World, benchmarks: int, rng: np.random.Generator) -> tuple[float]:
    """Coverage of the interval of a difference by seeds alone, as for pixel figures: of these images and categories."""
    inside = 0
    deviation = 0.01 * rng.uniform(0.5, 2, size=(1, world.categories, 1))  # categories differ in how much seeds do
    level = 0.9 + 0.03 * rng.normal(size=(2, world.categories, 1))
    true = float((level[0] - level[1]).mean())
    for _ in range(benchmarks):
        values = level + deviation * of_seeds_alike(world, 2, rng)
        found = judged(world, values, None)
        inside += found.low is not None and found.high is not None and found.low <= true <= found.high
    return (inside / benchmarks,)


def of_others(world: World, values: Floats, images: list[Images]) -> tuple[float, float]:
    """The interval of a method's mean for other categories as the pages have it; `values` [categories, seeds]."""
    around = spread(list(values), alone(world, values, images), together=world.together)
    if not world.together:
        return interval_across(values, around.error if around else 0.0)
    return interval_around(float(values.mean()), half_across(list(values), around))


def bootstrapped(values: Floats, images: list[Images], rng: np.random.Generator) -> tuple[float, float]:
    """The plain hierarchical bootstrap of a method's mean: percentiles over categories, their seeds and images drawn
    again. `values` [categories, seeds].
    """
    categories, seeds = values.shape
    moved = np.empty((categories, seeds, RESAMPLES))
    for c, one in enumerate(images):
        placed = [placements(one.scores["a", s], one.labels) for s in range(seeds)]
        parts_of_area = [np.array(part) for part in zip(*placed, strict=True)]  # [seeds, anomalous], [seeds, good]
        drawn_again = [rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in (one.anomalous, one.good)]
        moved[c] = sum(part @ often.T for part, often in zip(parts_of_area, drawn_again, strict=True))
        moved[c] -= values[c][:, None]
    chosen = rng.integers(categories, size=(RESAMPLES, categories))[..., None]
    again = rng.integers(seeds, size=(RESAMPLES, categories, seeds))
    sample = rng.integers(RESAMPLES, size=chosen.shape)
    low, high = np.percentile(moved[chosen, again, sample].mean(axis=(1, 2)), [2.5, 97.5])
    return float(low), float(high)


def of_means(world: World, benchmarks: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """(coverage of the interval of a method's mean over other categories, its median width, coverage of the plain
    hierarchical bootstrap).
    """
    true = float(truth(world.levels[0], world.category**2 + world.own**2 + world.seed**2))
    inside, plain, widths = 0, 0, []
    for _ in range(benchmarks):
        shape = (1, world.categories, 1)
        distances = world.levels[0] + world.category * rng.normal(size=shape) + world.own * rng.normal(size=shape)
        distances = distances + world.seed * of_seeds_alike(world, 1, rng)
        images = scored(world, distances, rng)
        values = figures(world, images)[0]
        low, high = of_others(world, values, images)
        inside += low <= true <= high
        widths.append(high - low)
        low, high = bootstrapped(values, images, rng)
        plain += low <= true <= high
    return inside / benchmarks, float(np.median(widths)), plain / benchmarks


def of_components(world: World, benchmarks: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Standard deviations (category found, true, seed found, true, image found), means over a quarter as many."""
    found, true_seed, true_category = [], [], []
    for _ in range(max(1, benchmarks // 4)):
        means = world.levels[0] + world.category * rng.normal(size=(1, world.categories, 1))
        distances = means + world.seed * rng.normal(size=(1, world.categories, world.seeds))
        images = scored(world, distances, rng)
        values = figures(world, images)[0]
        found.append(parts(list(values), alone(world, values, images)))
        true_seed.append(truth(distances[0], 0.0).var(axis=1, ddof=1).mean())
        true_category.append(truth(means[0, :, 0], world.seed**2).var(ddof=1))
    category, seed, image = (np.mean([getattr(one, name) for one in found]) for name in ("category", "seed", "image"))
    variances = (category, np.mean(true_category), seed, np.mean(true_seed), image)
    return tuple(float(np.sqrt(max(0.0, variance))) for variance in variances)


# kind -> what it simulates; its place seeds its generator, so that a part prints what the whole prints
KINDS: dict[str, Callable[[World, int, np.random.Generator], tuple[float, ...]]] = {
    "pairs": of_pairs, "seeds": of_seeds, "these": of_these, "means": of_means, "components": of_components,
}  # fmt: skip
LARGE = replace(WORLDS[0], categories=8, seeds=3)
Part = tuple[int, str]  # place of the world, kind


def code() -> str:
    """A hash of what the figures follow from."""
    files = [__file__, *(str(module.__file__) for module in (image_noise, inference, pairs, spreads, student_t))]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


def of_part(part: Part, benchmarks: int) -> tuple[float, ...]:
    """The figures of one world and kind."""
    number, kind = part
    world = LARGE if kind == "components" else WORLDS[number]
    return KINDS[kind](world, benchmarks, np.random.default_rng((number, list(KINDS).index(kind))))


def parts_of(worlds: Sequence[int]) -> list[Part]:
    """What is simulated for a table of `worlds`, the longest first."""
    found = [(number, kind) for kind in ("pairs", "means", "these", "seeds") for number in worlds]
    return [(0, "components"), *((n, k) for n, k in found if k != "seeds" or WORLDS[n].seeds > 1)]


def simulated(todo: Sequence[Part], benchmarks: int, workers: int, keep: Path | None) -> dict[Part, tuple[float, ...]]:
    """The figures of all parts, those that `keep` holds of this code read and the others added to it."""
    known = dict(kept(keep, benchmarks))
    left = [part for part in todo if part not in known]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(of_part, part, benchmarks): part for part in left}
        for done in as_completed(waiting):
            part = waiting[done]
            known[part] = done.result()
            line = json.dumps([code(), benchmarks, *part, known[part]])
            print(line, flush=True)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return known


def kept(keep: Path | None, benchmarks: int) -> Iterator[tuple[Part, tuple[float, ...]]]:
    """The parts that a file holds of this code and number of benchmarks; a line that was cut is none."""
    now = code()
    for line in keep.read_text(encoding="utf-8").splitlines() if keep is not None and keep.exists() else ():
        try:
            of_code, of_benchmarks, number, kind, found = json.loads(line)
        except ValueError:
            continue
        if (of_code, of_benchmarks) == (now, benchmarks):
            yield (number, kind), tuple(found)


def table(found: dict[Part, tuple[float, ...]], worlds: Sequence[int]) -> str:
    """Coverage in each world, in percent, and the variance components."""
    lines = [
        "| simulated benchmarks | difference, by images and seeds | difference, by seeds alone "
        "| mean, for these categories | its median width | mean, for other categories | its median width "
        "| a plain hierarchical bootstrap instead | found (p < 0.05) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number in worlds:
        pair, sure = found[number, "pairs"]
        seeds = f"{100 * found[number, 'seeds'][0]:.1f} %" if (number, "seeds") in found else "–"
        (mean, width, plain), (these, narrow) = found[number, "means"], found[number, "these"]
        lines.append(
            f"| {WORLDS[number].name} | {100 * pair:.1f} % | {seeds} | {100 * these:.1f} % | {narrow:.3f} "
            f"| {100 * mean:.1f} % | {width:.3f} | {100 * plain:.1f} % | {100 * sure:.1f} % |"
        )
    category, true_category, seed, true_seed, image = found[0, "components"]
    return "\n".join(lines) + (
        "\n\nVariance components, found beside true (standard deviations, 8 categories, 3 seeds): category "
        f"{category:.3f} (true {true_category:.3f}), seed {seed:.3f} (true {true_seed:.3f}), image sample {image:.3f}."
    )


def main() -> None:
    """Print the table, and put it between the marks of a page if asked."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--benchmarks", type=int, default=2000, help="Simulated benchmarks of each kind.")
    options.add_argument("--worlds", type=int, nargs="*", help="Numbers of the worlds to simulate; all if not given.")
    options.add_argument("--workers", type=int, default=1, help="Processes.")
    options.add_argument("--keep", type=Path, help="File that keeps each finished part for a later run.")
    options.add_argument("--write", type=Path, help="Page with the marks <!-- coverage: begin --> and end.")
    given = options.parse_args()
    if given.write and not MARKS.search(given.write.read_text(encoding="utf-8")):
        raise SystemExit(f"{given.write}: no marks <!-- coverage: begin --> and <!-- coverage: end -->")
    began = time.perf_counter()
    worlds = range(len(WORLDS)) if given.worlds is None else given.worlds
    text = table(simulated(parts_of(worlds), given.benchmarks, given.workers, given.keep), worlds)
    print(f"\n{text}\n{time.perf_counter() - began:.0f} s")
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        fresh = MARKS.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", page)
        given.write.write_text(fresh, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
