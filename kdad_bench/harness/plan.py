"""From a selection to its jobs, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

from kdad_bench.datasets import Category, all_sealed, fingerprint, sealed_apart
from kdad_bench.harness.axes import Axes, refuse_what_does_not_fit
from kdad_bench.harness.choices import MOST_COUNT, MULTI_CLASS, PRESETS, SelectionError, suggestion
from kdad_bench.harness.job import Job, Part, TeacherWeights, id_of
from kdad_bench.harness.lone_batch import refuse_lone_batches
from kdad_bench.harness.one_lot import refuse_shares_of_one_lot
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.view import refuse_what_cannot_be_seen
from kdad_bench.methods import outside

# settings that stand elsewhere -> where
NOT_SETTINGS = {"seed": "choose seeds with --seeds", "readings": "it follows from the method"}


def plan(selection: Selection, weights: Mapping[str, TeacherWeights]) -> list[Job]:
    """All jobs of a selection, as `every_job` gives them.

    Raises SelectionError for settings that a method cannot learn with and for two shares of a contamination that are
    one, DatasetError for a file that is missing.
    """
    jobs = every_job(selection, weights)
    refuse_shares_of_one_lot(jobs)
    for job in jobs:
        refuse_lone_batches(job)
    return jobs


def every_job(selection: Selection, weights: Mapping[str, TeacherWeights]) -> list[Job]:
    """All jobs of a selection in a fixed order: seeds outermost, so that a first full table comes early.

    `weights` maps a teacher's name to its weights; it must hold every teacher that `teachers(selection)` names. A job
    that is asked for twice (one folder under two spellings, say) is there once; those of a category with faults beside
    sound ones are there, to fail. Raises SelectionError and DatasetError.
    """
    jobs: dict[str, Job] = {}
    configurations = dict(configurations_of(selection))
    resolution = selection.resolution or PRESETS[selection.preset].resolution
    refuse_what_cannot_be_seen(selection.view, resolution, (method for method, _ in selection.methods))
    seal = all_sealed if selection.setting == MULTI_CLASS else sealed_apart  # one model learns from all, or from each
    categories = [Part(one, fingerprint(one)) for one in seal(selection.categories)]
    together = together_of(selection, categories)
    for seed, axes in product(selection.seeds, selection.axes):
        for category, data in categories:
            refuse_what_does_not_fit(axes, category, selection.view.fit)
            for (method, variant), (settings, asked, needs_teacher) in configurations.items():
                job = Job(
                    method=method,
                    variant=variant,
                    category=category,
                    seed=seed,
                    preset=preset_label(selection, asked, axes, together.get(category.dataset, ())),
                    resolution=resolution,
                    settings=suited(replace(settings, seed=seed), method, category),
                    weights=weights[settings.teacher] if needs_teacher else None,
                    device=selection.device,
                    deterministic=selection.deterministic,
                    hold_out=selection.hold_out,
                    fingerprint=data,
                    code=outside.ADDED[method].sha256 if method in outside.ADDED else "",
                    axes=axes,
                    view=selection.view,
                    together=together.get(category.dataset, ()),
                    also_presets=tuple(
                        preset_label(replace(selection, preset=name), asked, axes, together.get(category.dataset, ()))
                        for name in twins(method, selection.preset)
                    ),
                )
                jobs.setdefault(job.id, job)
    return list(jobs.values())


def together_of(selection: Selection, categories: Sequence[Part]) -> dict[str, tuple[Part, ...]]:
    """data set -> the categories that one model learns from, by name; none where each has a model of its own.

    Raises SelectionError for what cannot be learnt together.
    """
    if selection.setting != MULTI_CLASS:
        return {}
    for name, value in selection.view.used.items():
        raise SelectionError(
            f"--setting {MULTI_CLASS} is of images squeezed whole into squares: not with --{name} {value}; "
            "leave one of the two out"
        )
    found: dict[str, list[Part]] = {}
    for part in categories:
        found.setdefault(part.category.dataset, []).append(part)
        if part.category.modality != "rgb":
            raise SelectionError(
                f"--setting {MULTI_CLASS} is of photographs: not with --modality {part.category.modality}; "
                "leave one of the two out"
            )
    for dataset, parts in found.items():
        if len(parts) < 2:
            raise SelectionError(
                f"--setting {MULTI_CLASS}: one category alone of {dataset} ({parts[0].category.name}); choose two or "
                "more of it, or leave the option out"
            )
    return {dataset: tuple(sorted(parts, key=lambda part: part.category.name)) for dataset, parts in found.items()}


def suited(settings: Any, method: str, category: Category) -> Any:
    """`settings` with the modality of `category`, where the method has a setting for it."""
    from kdad_bench.methods import entry

    name = entry(method).modality_setting
    return replace(settings, **{name: category.modality}) if name else settings


def teachers(selection: Selection) -> tuple[str, ...]:
    """The names of the teachers that a selection needs, in order of first use."""
    found = [settings.teacher for _, (settings, _, needs) in configurations_of(selection) if needs]
    return tuple(dict.fromkeys(found))


def configurations_of(
    selection: Selection,
) -> Iterator[tuple[tuple[str, str], tuple[Any, dict[str, Any], bool]]]:
    """((method, variant), (settings, overrides that change it, whether it needs a teacher)) of each selected method.

    Raises SelectionError for an override that no selected method takes.
    """
    presets = [preset_of(method, selection.preset) for method, _ in selection.methods]
    every = list(dict.fromkeys(name for settings in presets for name in names_of(settings)))
    for name in selection.overrides or {}:
        if name not in every:
            raise not_a_setting(name, every, "settings of all methods")
    refuse_unknown_settings_of_methods(selection)
    for method, variant in selection.methods:
        yield (method, variant), configuration(selection, method, variant)


def refuse_unknown_settings_of_methods(selection: Selection) -> None:
    """Raises SelectionError for a setting that a method has not, of a method that is not selected too: a config file is
    for several runs, and a wrong word in it would go unseen until one of them needs it."""
    from kdad_bench.methods import entry

    for method, values in (selection.method_overrides or {}).items():
        if selection.preset in entry(method).presets:
            own = names_of(preset_of(method, selection.preset))
            for name in values:
                if name not in own:
                    raise not_a_setting(name, own, f"method '{method}'")


def preset_of(method: str, preset: str) -> Any:
    """The settings of a method's preset; raises SelectionError where it has none of that name."""
    from kdad_bench.methods import entry

    presets = entry(method).presets
    if preset not in presets:
        raise SelectionError(f"method '{method}' has no preset '{preset}'; have: {', '.join(presets)}")
    return presets[preset]


def configuration(selection: Selection, method: str, variant: str) -> tuple[Any, dict[str, Any], bool]:
    """(settings, overrides that change it, whether it needs a teacher) of one method in `selection`.

    Raises SelectionError for what the method has not and for settings that it refuses.
    """
    from kdad_bench.methods import entry

    found, settings = entry(method), preset_of(method, selection.preset)
    if variant:
        if variant not in found.variants:
            have = ", ".join(found.variants) or "none"
            raise SelectionError(
                f"method '{method}' has no variant '{variant}'{suggestion(variant, found.variants)}; have: {have}"
            )
        settings = replace(settings, **found.variants[variant])
    known = names_of(settings)
    shared = {name: value for name, value in (selection.overrides or {}).items() if name in known}
    own = (selection.method_overrides or {}).get(method, {})
    if own.get("steps") is not None:
        shared.pop("epochs", None)  # the budget of all, where this method has its own
    asked = {**shared, **own}
    if not found.needs_teacher and "teacher" in own:
        raise SelectionError(f"method '{method}': it has no teacher; leave teacher={own['teacher']!r} out")
    if not found.needs_teacher:
        asked.pop("teacher", None)  # one for all methods is for those that have one
    if found.modality_setting in asked:
        raise SelectionError(f"method '{method}': '{found.modality_setting}' cannot be set: it follows from --modality")
    final = configured(settings, asked, f"method '{method}'")
    kept = {name: getattr(final, name) for name in asked}
    changed = {name: value for name, value in kept.items() if value != getattr(settings, name)}
    return final, changed, found.needs_teacher


def twins(method: str, preset: str) -> list[str]:
    """The other presets in which a method has the same settings and sees and is judged at the same resolution."""
    from kdad_bench.methods import entry

    presets = entry(method).presets
    return [
        name
        for name, settings in presets.items()
        if name != preset and settings == presets[preset] and PRESETS[name].resolution == PRESETS[preset].resolution
    ]


def preset_label(selection: Selection, asked: Mapping[str, Any], axes: Axes, together: Sequence[Part] = ()) -> str:
    """The preset, with overrides in brackets, so that a changed budget is never averaged with the preset's own.

    Only what the method takes stands there: a job that nothing changed is the preset's own, whatever it ran beside.
    Categories that are learnt together stand there as their number and four digits that tell them from others.
    """
    parts = dict(asked)
    if selection.resolution and selection.resolution != PRESETS[selection.preset].resolution:
        parts["resolution"] = selection.resolution
    if selection.hold_out:
        parts["hold_out"] = selection.hold_out
    parts |= axes.used | selection.view.used
    if together:
        which = id_of({part.category.name: part.fingerprint for part in together})
        parts["setting"] = f"{MULTI_CLASS}:{len(together)}:{which[:4]}"
    shown = {name: value for name, value in parts.items() if value is not None}
    if not shown:
        return selection.preset
    return f"{selection.preset}[{','.join(f'{name}={shown[name]}' for name in sorted(shown))}]"


def configured(settings: Any, overrides: Mapping[str, Any], where: str) -> Any:
    """`settings` with `overrides` applied, one spelling of each number: a whole one in a field of floats is a float.

    Raises SelectionError naming an unknown field, a wrong type, or a value that no row or saved model can keep.
    """
    from kdad_bench.methods.kept_settings import reasons_against_keeping  # loads torch

    known = {name: getattr(settings, name) for name in names_of(settings)}
    for name, value in overrides.items():
        if name not in known:
            raise not_a_setting(name, list(known), where)
        if not compatible(known[name], value):
            raise SelectionError(
                f"{where}: {name}={value!r} does not fit, the default is {known[name]!r} ({type(known[name]).__name__})"
            )
        if type(value) is int and abs(value) > MOST_COUNT:
            raise SelectionError(f"{where}: {name}={value} is beyond what a row can say; take at most {MOST_COUNT}")
    floats = {one.name for one in fields(settings) if "float" in str(one.type)}
    try:
        final = replace(
            settings,
            **{name: spelt(value, floating=floating(known[name], name in floats)) for name, value in overrides.items()},
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise SelectionError(f"{where}: {error}") from error
    for why in reasons_against_keeping(final, where):
        raise SelectionError(f"{where}: {why}")
    refuse_what_is_not_kept(final, overrides, where)
    return final


def floating(default: object, declared: bool) -> bool:
    """Whether a field is of floats, by its default, or as `declared` where that does not tell."""
    if isinstance(default, (tuple, list)) and default:
        return any(isinstance(one, float) for one in default)
    return isinstance(default, float) or (declared and not isinstance(default, int))


def spelt(value: object, *, floating: bool) -> object:
    """A list as a tuple, numbers of a `floating` field as floats, without the sign of -0.0; else `value`."""
    if isinstance(value, (tuple, list)):
        return tuple(spelt(one, floating=floating) for one in value)
    if not floating or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return float(value) + 0.0


def refuse_what_is_not_kept(final: Any, overrides: Mapping[str, Any], where: str) -> None:
    """Raises SelectionError for a value that the `final` settings have replaced, as it cannot go with others: another
    job than was asked for would run."""
    from kdad_bench.methods.protocol import shown  # loads torch

    for name, value in overrides.items():
        kept = getattr(final, name)
        if kept != (tuple(value) if isinstance(value, list) else value):
            teacher = f" of teacher {final.teacher}" if name == "strides" else ""
            raise SelectionError(
                f"{where}: {name} {shown(value)}{teacher} cannot be: it would be taken as {shown(kept)}; leave it out"
            )


def names_of(settings: Any) -> list[str]:
    """The fields that a person may set."""
    return [field.name for field in fields(settings) if field.name not in NOT_SETTINGS]


def not_a_setting(name: str, known: Sequence[str], where: str) -> SelectionError:
    """What to raise for a field that is none."""
    if name in NOT_SETTINGS:
        return SelectionError(f"{where}: '{name}' cannot be set: {NOT_SETTINGS[name]}")
    return SelectionError(f"{where}: '{name}' is not a setting{suggestion(name, known)}; have: {', '.join(known)}")


def compatible(default: object, value: object) -> bool:
    """Whether an override has the type of the default it replaces (an int may stand for a float, None is untyped)."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list))
    return isinstance(value, type(default))
