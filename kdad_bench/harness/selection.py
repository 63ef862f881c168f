"""From what a person asked for to a checked `Selection`: names, categories, device, settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdad_bench import datasets
from kdad_bench.datasets import Category
from kdad_bench.datasets.category import not_a_category
from kdad_bench.harness.axes import LONGEST, PLAIN, Axes, points
from kdad_bench.harness.choices import (
    MOST_DIGITS,
    MULTI_CLASS,
    PRESETS,
    SelectionError,
    parse_assignment,
    refuse_unchosen,
    suggestion,
)
from kdad_bench.harness.determinism import prepare
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.view import WHOLE, View
from kdad_bench.methods import METHODS, known, outside

EVERYWHERE = ("teacher", "steps", "epochs", "batch_size", "image_size", "precision")  # options that are settings
BUDGETS = ("steps", "epochs")  # settings of which one stands
BESIDE = ("save_models", "save_maps", "tensorboard", "audit")  # what is written beside the rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What a person asked to run, after the command line and the config file have been read."""

    methods: tuple[tuple[str, str], ...]  # (method, variant)
    categories: tuple[Category, ...]
    seeds: tuple[int, ...]
    preset: str
    device: str
    resolution: int | None = None
    overrides: Mapping[str, Any] | None = None  # for every method that has the field
    method_overrides: Mapping[str, Mapping[str, Any]] | None = None  # for one method
    deterministic: bool = False
    hold_out: float = 0.0
    axes: tuple[Axes, ...] = (PLAIN,)
    view: View = WHOLE
    setting: str = "single"
    named: frozenset[str] | None = None  # methods that were asked for by name; None: all. Others may be left out

    def insists_on(self, method: str) -> bool:
        """Whether a method was asked for by name, so that a refusal of it is one of the whole run."""
        return self.named is None or method in self.named


def selected(options: RunOptions) -> Selection:
    """The checked selection; raises SelectionError or DatasetError with one line."""
    return selected_for(options, categories_of(options))


def selected_for(options: RunOptions, categories: tuple[Category, ...]) -> Selection:
    """What was asked for on `categories`, or on images that are in none; raises SelectionError with one line."""
    device = device_from(options.device)
    refuse_a_share_of_no_gpu(options, device)
    if options.deterministic:
        prepare(device)
    refuse_kernels_that_are_not_there(device)
    methods = tuple(dict.fromkeys(options.methods or ((name, "") for name in METHODS)))
    preset = options.preset or usual_preset(device, methods, categories)
    overrides, per_method = settings_of(options)
    return Selection(
        methods=methods,
        categories=categories,
        seeds=options.seeds or tuple(range(PRESETS[preset].seeds)),
        preset=preset,
        device=device,
        resolution=options.resolution,
        overrides=overrides,
        method_overrides=per_method,
        deterministic=options.deterministic,
        hold_out=options.hold_out,
        axes=points(options.train_images, options.contamination, options.corruption),
        view=View(fit=options.fit, tile=options.tile, overlap=options.overlap),
        setting=options.setting,
        named=None if options.methods else frozenset(per_method),
    )


def usual_preset(device: str, methods: Sequence[tuple[str, str]], categories: Sequence[Category]) -> str:
    """The preset of a run that names none: paper with CUDA, standard for real images on a CPU, else quick.

    Images that are in no category are taken for real. A method from outside need not have a standard preset; a run with
    such a one takes quick.
    """
    from kdad_bench.methods import entry

    if device.startswith("cuda"):
        return "paper"
    real = not categories or any(not category.synthetic for category in categories)
    return "standard" if real and all("standard" in entry(name).presets for name, _ in methods) else "quick"


def refuse_contradictions(options: RunOptions) -> None:
    """Raises SelectionError for options that would be ignored, or that lack a package every job would then miss."""
    if not options.chosen:
        raise SelectionError(
            "nothing chosen: say --all, or choose with --method, --dataset, --category or in a --config"
        )
    if options.save_models and options.modality != "rgb":
        raise SelectionError(
            f"--save-models keeps rgb models, which `predict` can use; not --modality {options.modality}"
        )
    if options.audit and options.setting == MULTI_CLASS:
        raise SelectionError(f"--audit watches the training of one category: not with --setting {MULTI_CLASS}")
    if options.audit and options.modality == "rgb+depth":
        raise SelectionError(
            "--audit watches one training; those of --modality rgb+depth are audited apart, rgb and depth"
        )
    if options.audit_every is not None and not options.audit:
        raise SelectionError(f"--audit-every {options.audit_every} is for --audit; add that, or leave it out")
    if options.executor != "ray" and options.address is not None:
        raise SelectionError("--address is for --executor ray; add that, or leave it out")
    refuse_more_than_a_gpu(options)
    if options.executor == "ray" and (options.workers or 1) > 1:
        raise SelectionError("--workers is for --executor local; Ray runs as many jobs as its cluster has CPUs")
    if options.time_every_job and options.measure_speed:
        raise SelectionError("--time-every-job and --measure-speed: speed is taken from the jobs or alone, not both")
    if options.executor == "in-process" and (options.workers or 1) > 1:
        raise SelectionError("--workers are processes: leave --executor in-process out, or take --workers 1")
    if options.executor == "in-process" and options.job_timeout is not None:
        raise SelectionError("--job-timeout stops a process: leave --executor in-process out, or take --executor local")
    if options.tensorboard and find_spec("tensorboard") is None:
        raise SelectionError("--tensorboard needs the tensorboard package: pip install tensorboard")
    refuse_urls_that_cannot_serve(options)


def refuse_more_than_a_gpu(options: RunOptions) -> None:
    """Raises SelectionError where jobs side by side would take more than one GPU, or nobody would keep a share."""
    share, workers = options.gpu_fraction, options.workers
    if share is None or options.executor == "ray":
        return
    if options.executor == "in-process" and share < 1:
        raise SelectionError(
            f"--gpu-fraction {share:g} is kept by processes: leave --executor in-process out, or take --executor local"
        )
    if workers is not None and workers * share > 1 + 1e-9:
        raise SelectionError(
            f"--workers {workers} with --gpu-fraction {share:g} is more than one GPU; take --gpu-fraction "
            f"{1 / workers:.3g} or --workers {int(1 / share + 1e-9)}"
        )


def refuse_a_share_of_no_gpu(options: RunOptions, device: str) -> None:
    """Raises SelectionError where a share of a GPU is asked for and none is used."""
    if options.gpu_fraction is not None and not device.startswith("cuda"):
        raise SelectionError(
            f"--gpu-fraction {options.gpu_fraction:g} is a share of a GPU: not with --device {device}; leave it out"
        )


def refuse_urls_that_cannot_serve(options: RunOptions) -> None:
    """Raises SelectionError for a URL that names no place, and for files that cannot lie beside rows at a URL."""
    scheme, separator, rest = options.out.partition("://")
    if separator and not rest:
        raise SelectionError(
            f"--out {options.out}: names no place; give a bucket and a folder, {scheme}://bucket/results"
        )
    for name in BESIDE if separator else ():
        if getattr(options, name):
            option = name.replace("_", "-")
            raise SelectionError(f"--{option} writes beside the rows, on this machine: not with a URL as --out")


def settings_of(options: RunOptions) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(overrides for every method that has the field, method -> overrides for it alone).

    Raises SelectionError for two budgets, a method that is none, and an assignment that cannot be read.
    """
    said = {name: getattr(options, name) for name in EVERYWHERE}
    overrides = {**options.settings, **{name: value for name, value in said.items() if value is not None}}
    per_method = {name: dict(values) for name, values in options.method_settings.items()}
    for name in per_method:
        refuse_no_method(name)
    for assignment in options.assignments:
        method, field, value = parse_assignment(assignment)
        if method:
            refuse_unchosen(method, options.methods, f"'{assignment}'")
        (per_method.setdefault(method, {}) if method else overrides)[field] = value
    for name, values in (("", overrides), *per_method.items()):
        one_budget(values, f" of {name}" if name else "")
    return overrides, per_method


def one_budget(values: dict[str, Any], whose: str) -> None:
    """Let epochs take the place of a preset's steps; raises SelectionError where both are given."""
    steps, epochs = values.get("steps"), values.get("epochs")
    if steps is not None and epochs is not None:
        raise SelectionError(f"steps {steps} and epochs {epochs}{whose} are two budgets; give one of them")
    if epochs is not None:
        values["steps"] = None


def refuse_no_method(name: str) -> None:
    """Raises SelectionError for settings of a method that is none."""
    try:
        there = known(name)
    except outside.OutsideError as error:
        raise SelectionError(str(error)) from error
    if not there:
        raise SelectionError(f"settings of '{name}': not a method{suggestion(name, METHODS)}")


def device_from(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> `cpu` or `cuda:N`; raises SelectionError for a device that is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda:0" if count else "cpu"
    if text == "cpu":
        return text
    kind, _, number = text.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()) or len(number) > MOST_DIGITS:
        raise SelectionError(f"device '{text[:LONGEST]}' is not one of auto, cpu, cuda, cuda:N")
    if int(number or 0) >= count:
        raise SelectionError(
            f"device '{text}' is not there: torch sees {count} CUDA device(s); take --device cpu or auto"
        )
    return f"cuda:{int(number or 0)}"


def refuse_kernels_that_are_not_there(device: str) -> None:
    """Raises SelectionError if KDAD_KERNELS asks for what this device has not."""
    from kdad_bench.kernels import dispatch

    try:
        dispatch.path(device)
    except ValueError as error:
        raise SelectionError(str(error)) from error


def categories_of(options: RunOptions) -> tuple[Category, ...]:
    """Every selected category; the embedded data where neither data sets nor a data root are named.

    The files of the others are not looked at. Raises SelectionError for a category that is not there, and DatasetError.
    """
    there, wanted = category_names_of(options), dict.fromkeys(options.categories)
    known = [name for names in there.values() for name in names]
    for name in wanted:
        if name not in known:
            named = ", ".join(datasets_of(options))
            raise SelectionError(not_a_category(name, named, known))
    chosen = {of: [name for name in names if not wanted or name in wanted] for of, names in there.items()}
    for of, names in chosen.items():
        if wanted and options.datasets and not names:
            raise SelectionError(
                f"--dataset {of}: has none of the chosen categories ({', '.join(wanted)}); leave it out"
            )
    return tuple(
        one
        for of, names in chosen.items()
        if names
        for one in datasets.categories(of, options.data_root, names, modality=options.modality)
    )


def category_names_of(options: RunOptions) -> dict[str, list[str]]:
    """Data set -> the names of all its categories, of every selected data set. Raises SelectionError, DatasetError."""
    named = dict.fromkeys(map(datasets.canonical, datasets_of(options)))
    return {name: datasets.category_names(name, options.data_root) for name in named}


def datasets_of(options: RunOptions) -> list[str]:
    """The names of the selected data sets; raises SelectionError for a data root without one."""
    root = options.data_root
    if options.datasets or root is None:
        return list(options.datasets) or ["synthetic"]
    names = datasets.find(root)
    if not names:
        raise SelectionError(no_data(root))
    return names


def no_data(root: Path) -> str:
    """Why nothing can be run from a data root that was named, and what to do."""
    remedy = "or take the embedded data with --dataset synthetic"
    names = ", ".join(f"{name}/" for name in datasets.entries(lambda one: one.folders))
    if not root.is_dir():
        what = "is no folder" if os.path.lexists(root) else "no such folder"
        return f"data root {root}: {what}; name the one that holds {names}, {remedy}"
    if any(layout.categories(root) for one in datasets.entries().values() for layout in one.layouts):
        path = datasets.canonical(f"folder:{root}")
        return f"data root {root}: is a data set itself; give the folder it lies in, or --dataset {path}"
    return f"data root {root}: no data set there ({names}); fetch one (`kdad-bench data fetch`), {remedy}"
