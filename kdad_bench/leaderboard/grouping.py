"""Rows -> groups that may stand in one table, their entrants, and the rows of each that count.

Only like is compared with like: rows are split by data set, preset, modality, resolution, protocol version, device and
origin. Within a group the newest row of a job counts, made from the newest files of its category; what is left out is
said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kdad_bench.leaderboard.families import family_of
from kdad_bench.leaderboard.images import of_jobs
from kdad_bench.leaderboard.row import UNAVAILABLE, instant
from kdad_bench.leaderboard.summary import Entrant, Group, Summary
from kdad_bench.leaderboard.text import counted

MOST_ENTRANTS = 200  # of one table; every pair of them is compared
MOST_CELLS = 2_000_000  # entrants x categories x seeds of one table

GROUP_COLUMNS = ("dataset", "preset", "modality", "resolution", "protocol_version", "device", "device_name", "origin")
Identity = tuple[str, str, str, str, str]  # method, variant, teacher, hash of its weights, hash of the code


def summarise(rows: Iterable[Mapping[str, Any]], metrics: Sequence[str]) -> list[Summary]:
    """The summaries of all groups in `rows` (dictionaries by column of `row.SCHEMA`), in the order of their groups.

    The result does not depend on the order of the rows. Where a job was repeated the newest row counts; where a
    category's files changed between rows, only rows of the newest content count; `problems` says what was left out.
    """
    ordered = sorted(rows, key=lambda row: (instant(row["created_at"]), row["job_id"]))
    groups: dict[Group, list[Mapping[str, Any]]] = {_group(row): [] for row in ordered}
    for row in ordered:
        groups[_group(row)].append(row)
        # a result that is another preset's as well stands in the table of that one too, where there is such a table; a
        # failure is listed once
        for preset in row.get("also_presets") or () if row["status"] == "ok" else ():
            if (twin := {**row, "preset": preset}) and _group(twin) in groups:
                groups[_group(twin)].append(twin)
    return [_summary(group, groups[group], metrics) for group in sorted(groups)]


def _group(row: Mapping[str, Any]) -> Group:
    return Group(
        **{name: str(row[name] or "") for name in GROUP_COLUMNS if name != "resolution"},
        resolution=row["resolution"] or 0,
        synthetic=False,  # as yet: `_summary` knows which rows count
    )


def _summary(group: Group, rows: list[Mapping[str, Any]], metrics: Sequence[str]) -> Summary:
    """The summary of rows that share a group, oldest first."""
    problems: list[str] = []
    every = rows
    rows = _of_bounded_size(_with_weights(_of_newest_content(rows, problems)), problems)
    entrants = entrants_of(rows)
    counted = _that_count(rows, entrants, problems)
    ordered = tuple(sorted(entrants.values(), key=lambda e: e.key))
    categories = tuple(sorted({row["category"] for row in rows}))
    seeds = tuple(sorted({row["seed"] for row in rows}))
    at = {e.key: i for i, e in enumerate(ordered)}
    values = {m: np.full((len(ordered), len(categories), len(seeds)), np.nan) for m in metrics}
    failed = []
    jobs = {}
    scored: dict[str, list[tuple[tuple[str, int], Mapping[str, Any]]]] = {}
    for (key, category, seed), row in sorted(counted.items()):
        if row["status"] != "ok":
            failed.append((key, category, seed, str(row["reason"] or "unknown")))
            continue
        jobs[key, category, seed] = row["job_id"]
        scored.setdefault(category, []).append(((key, seed), row))
        for metric in metrics:
            if row[metric] is not None:
                values[metric][at[key], categories.index(category), seeds.index(seed)] = row[metric]
    speaking = [row for row in counted.values() if row["status"] == "ok"] or list(counted.values())
    return Summary(
        group=replace(group, synthetic=any(row["synthetic"] for row in speaking)),
        entrants=ordered,
        categories=categories,
        seeds=seeds,
        values=values,
        jobs=jobs,
        entrant_of={
            row["job_id"]: entrants[identity_of(row)].key for row in (*every, *rows) if identity_of(row) in entrants
        },
        images={category: images for category, made in scored.items() if (images := of_jobs(made)) is not None},
        failed=tuple(failed),
        problems=tuple(problems),
        together=any(row.get("setting") for row in speaking),
    )


def _that_count(
    rows: list[Mapping[str, Any]], entrants: Mapping[Identity, Entrant], problems: list[str]
) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """(entrant, category, seed) -> the row that counts of `rows`, oldest first."""
    newest: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    repeated = 0
    for row in rows:
        place = (entrants[identity_of(row)].key, row["category"], row["seed"])
        before = newest.get(place)
        if before is not None and before["status"] == "ok" and row["status"] != "ok":
            continue  # a later failure does not erase a result; the failure is not news either
        repeated += before is not None and before["status"] == "ok"
        newest[place] = row
    if repeated:
        problems.append(f"{repeated} results of repeated jobs left out: the newest row of each counts")
    return newest


def _with_weights(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`rows`, oldest first, where a job that failed for want of its teacher's weights counts as one of the weights that
    finished jobs had: once they are there it is run again, under another id, and no entrant of its own."""
    had = {_but_weights(row): row for row in rows if row["status"] == "ok"}
    found = []
    for row in rows:
        there = had.get(_but_weights(row)) if row["teacher_sha256"] == UNAVAILABLE else None
        found.append(row if there is None else {**row, **{name: there[name] for name in _WEIGHTS}})
    return found


_WEIGHTS = ("teacher_weights", "teacher_sha256")


def _but_weights(row: Mapping[str, Any]) -> tuple[str, ...]:
    method, variant, teacher, _, code = identity_of(row)
    return method, variant, teacher, code


def _of_newest_content(rows: list[Mapping[str, Any]], problems: list[str]) -> list[Mapping[str, Any]]:
    """`rows`, oldest first, without the results made from other files than the newest finished row of their category.

    A failure says nothing about the files: damaged ones may have been repaired since, so it decides nothing here.
    """
    ok = [row for row in rows if row["status"] == "ok" and row["data_fingerprint"] is not None]
    newest = {row["category"]: row["data_fingerprint"] for row in ok}
    old = [row for row in ok if row["data_fingerprint"] != newest[row["category"]]]
    for category in sorted({row["category"] for row in old}):
        number = counted(sum(row["category"] == category for row in old), "row")
        problems.append(f"category {category!r}: {number} left out, made from other files than the newest row's")
    gone = {id(row) for row in old}
    return [row for row in rows if id(row) not in gone]


def _of_bounded_size(rows: list[Mapping[str, Any]], problems: list[str]) -> list[Mapping[str, Any]]:
    """`rows` without the rarest entrants and seeds where the table of all would not fit the memory."""
    kept = [identity_of(row) for row in rows]
    often = {identity for identity, _ in Counter(kept).most_common(MOST_ENTRANTS)}
    rows_kept = [row for row, identity in zip(rows, kept, strict=True) if identity in often]
    categories = len({row["category"] for row in rows_kept})
    most_seeds = max(1, MOST_CELLS // (len(often) * categories or 1))
    seeds = {seed for seed, _ in Counter(row["seed"] for row in rows_kept).most_common(most_seeds)}
    rows_kept = [row for row in rows_kept if row["seed"] in seeds]
    if len(rows_kept) < len(rows):
        number = counted(len(rows) - len(rows_kept), "row")
        problems.append(f"{number} left out: more methods or seeds than one table can hold")
    return rows_kept


def identity_of(row: Mapping[str, Any]) -> Identity:
    """What makes the entrant of a row another than that of a second row."""
    named = ("method", "variant", "teacher", "teacher_sha256", "code_sha256")
    method, variant, teacher, weights, code = (row[name] or "" for name in named)
    return method, variant, teacher, weights, code


def entrants_of(rows: Iterable[Mapping[str, Any]]) -> dict[Identity, Entrant]:
    """One entrant for each method, variant, teacher and code; the last two are named only where they tell two apart."""
    newest = {identity_of(row): row for row in rows}
    found: dict[Identity, Entrant] = {}
    for identity, row in sorted(newest.items()):
        method, variant, teacher, sha256, code = identity
        every = [other for other in newest if other[:2] == identity[:2]]
        twins = [other for other in every if other[4] == code]
        key = f"{method}:{variant}" if variant else method
        title = row["title"] or method
        if len(twins) > 1:
            weights = row["teacher_weights"] or "no weights"
            unique = sum(newest[t]["teacher_weights"] == row["teacher_weights"] and t[2] == teacher for t in twins) == 1
            name = f"{teacher} {weights}" if unique else f"{teacher} {weights} {sha256[:8]}"
            key, title = f"{key}@{name}", f"{title} ({name})"
        if len(twins) < len(every):
            key, title = f"{key}@code {code[:8]}", f"{title} (code {code[:8]})"
        found[identity] = Entrant(
            key=key,
            method=method,
            variant=variant or None,
            title=title,
            teacher=teacher or None,
            teacher_weights=row["teacher_weights"],
            family=family_of(row),
        )
    return found


def shortest_names(datasets: Iterable[str]) -> dict[str, str]:
    """data set -> how it is shown: a folder by the fewest of its last components that no other folder ends with."""
    parts = {name: [part for part in name.removeprefix("folder:").split("/") if part] for name in datasets}
    folders = sorted(name for name in parts if name.startswith("folder:"))
    found = {name: name for name in parts}
    for name in folders:
        for length in range(1, len(parts[name]) + 1):
            end = parts[name][-length:]
            if not any(parts[other][-length:] == end for other in folders if other != name):
                found[name] = f"folder:{'/'.join(end)}"
                break
    return found
