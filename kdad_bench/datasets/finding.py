"""From the name of a data set to its categories on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kdad_bench.datasets import whole
from kdad_bench.datasets.cache import fingerprint
from kdad_bench.datasets.category import (
    MODALITIES,
    Category,
    DatasetError,
    each_by_itself,
    not_a_category,
    printable,
    suggestion,
)
from kdad_bench.datasets.entry import Entry, Layout
from kdad_bench.datasets.listing import (
    CLOSED,
    SHOWN,
    SUFFIX,
    Unused,
    alike,
    form,
    holds_images,
    is_file,
    is_folder,
    is_listed,
    look,
    loose,
    nested,
    remarks,
)
from kdad_bench.datasets.stand_in import marked
from kdad_bench.datasets.survey import Survey, category_of, kinds
from kdad_bench.datasets.table import DATASETS, code_of, entries, entry, known, named, spelling
from kdad_bench.datasets.table_layout import NEEDED, TABLES


class Place(NamedTuple):
    """A data set that was found."""

    name: str  # the same for every spelling of one folder
    root: Path
    entry: Entry
    layout: Layout
    categories: dict[str, Path]
    synthetic: bool


def at_home(path: Path) -> Path:
    """`path` with `~` as the home folder. Raises DatasetError for the home of an unknown user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{path}: not a path ({error})") from error


def expanded(path: Path) -> Path:
    """`path` from the root on, with `~` and links resolved: one spelling for one folder.

    Raises DatasetError for what is no path.
    """
    try:
        return at_home(path).resolve()
    except (RuntimeError, OSError, ValueError) as error:  # RuntimeError: a circle of links
        raise DatasetError(f"{path}: not a path ({error})") from error


def canonical(dataset: str) -> str:
    """The one spelling of a data set's name: folder:PATH with the resolved path, the name of a file's entry."""
    name, path = named(dataset)
    if path and known(name) and entry(name).takes_path:
        return f"{name}:{expanded(Path(path))}"
    return name if path is None else f"{name}:{path}"


def find(data_root: Path) -> list[str]:
    """The names of the data sets that lie under `data_root`: real ones and drawn stand-ins."""
    data_root = expanded(data_root)
    found = [name for name, one in entries(lambda one: one.folders).items() if root_of(one, data_root) is not None]
    return found + [folder.name for folder in look(data_root).folders if marked(folder)]


def root_of(one: Entry, data_root: Path) -> Path | None:
    """The folder of a data set below `data_root`, or `data_root` itself where it is that folder."""
    data_root = expanded(data_root)
    places = [data_root / folder for folder in one.folders]
    if data_root.name in one.folders:
        places.append(data_root)
    for place in places:
        for layout in one.layouts:
            found = layout.categories(place)
            if found and place not in found.values():  # a folder of categories, and not one category
                return place
    return None


def categories(
    dataset: str, data_root: Path | None, names: Sequence[str] = (), *, modality: str = "rgb", partly: bool = False
) -> list[Category]:
    """The categories of a data set, all of them or those in `names`, in alphabetical order.

    `dataset` is a name of the table, folder:PATH, or the folder name of a drawn stand-in.
    Raises DatasetError with one line if the data set, a category or a file is missing, and, unless it is only to be
    looked at `partly`, if there are fewer images than published.
    """
    if modality not in MODALITIES:
        raise DatasetError(f"modality '{modality}': must be one of {', '.join(MODALITIES)}")
    place = located(dataset, data_root, names)
    if modality not in place.entry.modalities:
        having = ", ".join(map(spelling, entries(lambda one: modality in one.modalities).values()))
        raise DatasetError(f"modality '{modality}': {dataset} has no scans; use rgb, or one of {having}")
    surveys = [_survey(place, name) for name in _chosen(place.name, list(place.categories), names)]
    found = []
    if faults := [line for survey in surveys for line in survey.faults]:
        raise DatasetError(*kinds(faults))
    for survey in surveys:
        drawn = place.synthetic or (survey.by_table and _names_drawn(survey))
        made = category_of(survey, place.name, synthetic=drawn, modality=modality)
        told = whole.remarks(made, place.entry)
        other = "" if drawn else whole.departure(made, place.entry)
        found.append(replace(made, code=code_of(place.entry.name), remarks=(*made.remarks, *told), departure=other))
    if lines := [] if partly else whole.refusals(place.root, place.entry, found):
        raise DatasetError(*lines)
    return found


def _names_drawn(survey: Survey) -> bool:
    """Whether a table names an image that lies anywhere below the marker of drawn ones."""
    folders = {Path(folder).resolve() for folder in {os.path.dirname(sample.path) for sample in survey.samples}}
    return any(map(marked, folders | {above for folder in folders for above in folder.parents}))


def _survey(place: Place, name: str) -> Survey:
    survey = place.layout.survey(place.categories[name])
    survey.name = name
    return survey


def category_names(dataset: str, data_root: Path | None) -> list[str]:
    """The names of the categories of a data set in alphabetical order; which files they have is not looked at.

    Raises DatasetError with one line if the data set is missing.
    """
    return list(located(dataset, data_root).categories)


def names_at_hand(dataset: str, data_root: Path | None) -> list[str]:
    """The names of the categories of a data set as far as looking tells: no code is loaded, and nothing is drawn.

    Empty for a data set from outside of this package, and for one that is not there.
    """
    name = dataset.partition(":")[0]
    if name in DATASETS and entry(name).drawn is not None:
        return list(entry(name).drawn_names)
    try:
        if name not in DATASETS and (data_root is None or not marked(expanded(data_root) / name)):
            return []
        return list(located(dataset, data_root).categories)
    except DatasetError:
        return []


def located(dataset: str, data_root: Path | None, names: Sequence[str] = ()) -> Place:
    """Where a data set lies and how it is read; an embedded one is drawn if it is not there, `names` of it or all.

    Raises DatasetError with one line if it is not known or not there.
    """
    name, path = named(dataset)
    one = entry(name) if known(name) else None
    if one is not None and one.takes_path:
        if not path:
            raise DatasetError(f"data set '{dataset}': write {spelling(one)}")
        return _place(canonical(dataset), expanded(Path(path)), one)
    if one is not None and path is None:
        if one.drawn is not None:
            return _place(name, one.drawn(names), one)
        return _of_its_own(_place(name, _root(one, data_root), one))
    if one is not None:
        raise DatasetError(f"data set '{dataset}': {name} takes no path; write {name}, it is looked for by its name")
    stand_in = expanded(data_root) / dataset if data_root is not None and "/" not in dataset else None
    like = str(marked(stand_in).get("like")) if stand_in is not None else None
    if stand_in is not None and like in entries():
        return _place(dataset, stand_in, entry(like))
    raise DatasetError(_unknown(dataset))


def _of_its_own(place: Place) -> Place:
    """`place`, unless it is the tree of another data set; raises DatasetError then.

    It is one if none of its categories is published for its own, and one is for another, or `closed` excludes others.
    """
    names = list(place.categories)
    others = [one.title for one in entries(lambda one: any(whole.published_name(one, name) for name in names)).values()]
    if not place.entry.published or place.entry.title in others or not (others or place.entry.closed):
        return place
    have, wanted = (", ".join(list(some)[:SHOWN]) for some in (place.categories, place.entry.published))
    other = others[0] if others else "another data set"
    raise DatasetError(
        f"{place.root}: none of its {len(place.categories)} categories ({have}) is one of {place.entry.title} "
        f"({wanted}, ...); is it {other}? move it under that name{_or_folder(place.root)}"
    )


def _root(one: Entry, data_root: Path | None) -> Path:
    """The folder of a data set that has to lie below the data root."""
    if data_root is None:
        raise DatasetError(
            f"{one.name}: no data root; give --data-root or set KDAD_DATA to the folder that holds {one.name}/"
        )
    root = root_of(one, data_root)
    if root is None:
        for place in (data_root / name for name in one.folders):
            if is_folder(place):
                raise DatasetError(_another(place, one))
        places = " or ".join(str(data_root / name) for name in one.folders[:2])
        raise DatasetError(f"{data_root}: no {one.name} there; put its categories in {places}, or fetch it")
    return root


def _another(place: Path, one: Entry) -> str:
    """What to say of a folder under the name of a data set in which no category has its layout."""
    found = {name for other in entries().values() for layout in other.layouts for name in layout.categories(place)}
    fits = entries(lambda other: any(whole.published_name(other, name) for name in found))
    titles = [other.title for other in fits.values()]
    about = f"{place}: no {one.name} there, the layout is {one.layouts[0].text}"
    if not found:
        return f"{about}; restore it, or fetch it again"
    have = ", ".join(sorted(found)[:SHOWN])
    other = titles[0] if titles else "another data set"
    return f"{about}; is it {other} ({have})? move it under that name{_or_folder(place)}"


def _or_folder(root: Path) -> str:
    """What else to do with somebody's own images, where `folder:` reads them."""
    return f", or name it folder:{root}" if whole.is_a_folder(root) else ""


def _place(name: str, root: Path, one: Entry) -> Place:
    """The first layout that finds a category in `root`."""
    if not is_folder(root) and not (one.takes_file and is_file(root)):
        kind = "file or folder" if one.takes_file else "folder"
        what = f"not a {kind}" if os.path.lexists(root) else f"no such {kind}"
        several = each_by_itself(str(root), "--dataset")
        raise DatasetError(f"{root}: {what}; {several}the layout is {one.layouts[-1].text}")
    drawn = one.synthetic or bool(marked(root)) or bool(marked(root.parent))
    for layout in one.layouts:
        found = layout.categories(root)
        if lines := alike(root, found):
            raise DatasetError(*lines)
        if found:
            return Place(name, root, one, layout, found, drawn)
    raise DatasetError(f"{root}: no category there; the layout is {one.layouts[-1].text}")


def _unknown(dataset: str) -> str:
    if "/" in dataset or dataset.startswith(("~", ".")) or is_folder(Path(dataset)):
        return f"data set '{dataset}': for a path write folder:{dataset}"
    have = ", ".join(map(spelling, entries().values()))
    close = suggestion(dataset, entries())
    several = each_by_itself(dataset, "--dataset")
    return f"data set '{dataset}'{close} is not known; {several}have: {have}, or a drawn stand-in under the data root"


def _chosen(dataset: str, have: Sequence[str], names: Sequence[str]) -> list[str]:
    """The categories called `names`, as they are called on disk, or all; raises DatasetError for one that is none."""
    forms = {form(name): name for name in have}
    for name in names:
        if form(name) not in forms:
            raise DatasetError(not_a_category(name, dataset, have))
    wanted = {forms[form(name)] for name in names}
    return [name for name in have if not names or name in wanted]


def strays(root: Path, folders: Sequence[Path]) -> list[Unused]:
    """What lies beside the categories of a data set and may be meant as one: folders of images, or tables.

    Images beside them, and what cannot be looked at, are such, too.
    """
    if not all(map(is_folder, folders)):
        if not {one.suffix.lower() for one in folders} <= TABLES:
            return []
        top = look(root, TABLES)
        lost = [one for one in top.unused if one.why != SUFFIX and one.path.suffix.lower() in TABLES]
        beside = [one for one in top.files if one not in folders]
        return [*lost, *(Unused(one, f"no table with the columns {', '.join(NEEDED)}") for one in beside)]
    others = [path for path in look(root).folders if path not in folders and holds_images(path)]
    return [
        *loose(root, "not in a folder of a category"),
        *(Unused(one.path, "not a category" if is_listed(one.path) else CLOSED, one.files) for one in nested(others)),
    ]


def under_known_names(chosen: Sequence[Category], known: Mapping[tuple[str, str], str]) -> tuple[Category, ...]:
    """The categories of a folder under the name that results have for the same files: one that moved is no new one.

    `known` maps (category, fingerprint) to the name of a data set in earlier results. A name is taken for a whole
    folder, and only where no category of it has other files under that name.
    """
    marks = {(one.dataset, one.name): _mark(one) for one in chosen if _takes_path(one.dataset)}
    names: dict[str, str] = {}
    for dataset in dict.fromkeys(dataset for dataset, _ in marks):
        own = {(name, mark) for (of, name), mark in marks.items() if of == dataset}
        for earlier in dict.fromkeys(known[one] for one in own if one in known and _takes_path(known[one])):
            theirs = {one for one, name in known.items() if name == earlier}
            if not {name for name, _ in own - theirs} & {name for name, _ in theirs}:
                names.setdefault(dataset, earlier)
    return tuple(replace(one, dataset=names.get(one.dataset, one.dataset)) for one in chosen)


def _takes_path(dataset: str) -> bool:
    name, colon, _ = dataset.partition(":")
    return bool(colon) and name in entries() and entry(name).takes_path


def _mark(one: Category) -> str:
    """The fingerprint, or nothing where a file is missing: the job itself will say so."""
    try:
        return fingerprint(one)
    except DatasetError:
        return ""


def remarks_on(chosen: Sequence[Category], data_root: Path | None) -> list[str]:
    """A line for each kind of thing that is not used: beside the categories of their data sets, and in those chosen."""
    lines: list[str] = []
    for dataset in dict.fromkeys(one.dataset for one in chosen):
        place = located(dataset, data_root, [one.name for one in chosen if one.dataset == dataset])
        folders = list(place.categories.values())
        lines += remarks([] if place.root in folders else strays(place.root, folders))
    return [*map(printable, lines), *(line for one in chosen for line in one.remarks)]
