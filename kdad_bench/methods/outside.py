"""Methods from outside the package: files and entry points (`kdad_bench.outside`), checked and known by their names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench import outside as code
from kdad_bench.outside import NAME, OutsideError, spelled

if TYPE_CHECKING:
    from kdad_bench.methods.protocol import Entry

__all__ = [
    "ADDED",
    "NAME",
    "Outside",
    "OutsideError",
    "add_content",
    "add_file",
    "add_installed",
    "installed",
    "spelled",
]

GROUP = "kdad_bench.methods"  # entry points of installed packages: NAME = "module:ENTRY"
VARIANT = re.compile(r"[\w.+-]{1,40}")
PRESETS = ("quick", "paper")  # what each has; it may have "standard" too


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """A method that is not this package's, and the code that it runs."""

    entry: Entry
    where: str  # as messages name it
    sha256: str  # of the file, or of the code of the package (`hash_of`)
    content: bytes = b""  # of the file; none of a package, which every process imports by itself
    attribute: str = ""  # of the file's module


ADDED: dict[str, Outside] = {}  # name -> method, of this process


def add_file(path: Path, attribute: str, taken: Collection[str]) -> str:
    """Load the entry `attribute` (empty: the only one) of a file and return its name; raises OutsideError."""
    return add_content(code.read(path), attribute, str(path), taken)


def add_content(content: bytes, attribute: str, where: str, taken: Collection[str]) -> str:
    """`add_file` of bytes that were read already: a worker process gets them with its job."""
    import kdad_bench.methods.foreign  # noqa: F401  # what of torch's is put back
    from kdad_bench.methods.protocol import Entry

    sha256 = hashlib.sha256(content).hexdigest()
    module = code.module_of(content, sha256, where)
    found = code.entry_in(module, attribute, where, Entry)
    entry = checked(found, where, taken)
    attribute = code.attribute_of(module, found)
    code.refuse_twin(entry.name, where, sha256, attribute, ADDED.get(entry.name))
    if entry.name not in ADDED:
        ADDED[entry.name] = Outside(entry=entry, where=where, sha256=sha256, content=content, attribute=attribute)
    return entry.name


def checked(found: Any, where: str, taken: Collection[str]) -> Entry:
    """`found` if it can be run as a method; raises OutsideError."""
    from kdad_bench.methods.protocol import Entry

    code.refuse_no_entry(found, where, Entry)
    entry: Entry = found
    if entry.name in taken:
        raise OutsideError(f"{where}: the name {entry.name!r} is that of a method of this package; take another")
    for why in reasons_against(entry):
        raise OutsideError(f"{where}: {why}")
    return entry


def reasons_against(entry: Any) -> Iterator[str]:
    """What is wrong with an entry, in words that follow its file."""
    from kdad_bench.methods.protocol import FAMILIES, Settings

    if not isinstance(entry.presets, dict) or any(
        not isinstance(entry.presets.get(preset), Settings) for preset in PRESETS
    ):
        yield "presets need 'quick' and 'paper', each an instance of Settings"
    for preset, settings in entry.presets.items():
        if not isinstance(settings, Settings):
            yield f"preset {preset!r} is of type {type(settings).__name__}, not an instance of Settings"
        if preset not in (*PRESETS, "standard"):
            yield f"preset {preset!r} is none of quick, standard and paper, and nothing could choose it; leave it out"
    classes = dict.fromkeys(map(type, entry.presets.values()))
    if len(classes) > 1:
        yield f"presets are of {' and '.join(one.__name__ for one in classes)}; take one class of settings for all"
    for preset, settings in entry.presets.items():
        yield from reasons_against_settings(entry, f"preset {preset!r}", settings)
    if not callable(entry.build):
        yield f"build is of type {type(entry.build).__name__}, not callable"
    if entry.family not in FAMILIES or not isinstance(entry.title, str) or not entry.title.strip():
        yield f"it needs a title, and a family of {', '.join(FAMILIES)}"
    for name in ("title", "paper", "whole", "published_variant", "modality_setting"):
        value = getattr(entry, name)
        if not isinstance(value, str) or not (value.isprintable()):
            yield f"{name} {value!r} is no line of text"
    for name in ("needs_teacher", "reading"):
        if not isinstance(getattr(entry, name), bool):
            yield f"{name} is {getattr(entry, name)!r}, neither True nor False"
    if not isinstance(entry.variants, Mapping):
        yield f"variants are of type {type(entry.variants).__name__}, not a dict of names and settings"
    for name, changed in entry.variants.items():
        yield from reasons_against_variant(entry, name, changed)
    if entry.published_variant and entry.published_variant not in entry.variants:
        yield f"published_variant {entry.published_variant!r} is none of its variants"
    own = {field.name for field in fields(entry.presets["paper"])}
    if entry.modality_setting and entry.modality_setting not in own:
        yield f"modality_setting {entry.modality_setting!r} is none of its settings"


def reasons_against_settings(entry: Entry, which: str, settings: Any) -> Iterator[str]:
    """Why rows and saved models could not keep the `settings` of a preset or variant, which words call `which`."""
    from kdad_bench.methods.kept_settings import reasons_against_keeping

    try:
        for why in reasons_against_keeping(settings, entry.name):
            yield f"{which}: {why}"
    except Exception as error:  # what a person annotates and puts there may be anything
        yield f"{which}: its settings cannot be kept in a row or a saved model ({code.said(error)})"


def reasons_against_variant(entry: Entry, name: Any, changed: Any) -> Iterator[str]:
    """What is wrong with the variant `name`, which sets what is `changed` in each preset."""
    if not isinstance(name, str) or not VARIANT.fullmatch(name) or not isinstance(changed, Mapping):
        yield f"variant {name!r} is no name of letters, digits and . _ + - with a dict of settings"
        return
    for preset, settings in entry.presets.items():
        try:
            changed_settings = replace(settings, **changed)
        except (TypeError, ValueError) as error:
            yield f"variant {name!r} does not fit preset {preset!r} ({code.said(error)})"
        else:
            yield from reasons_against_settings(entry, f"variant {name!r} of preset {preset!r}", changed_settings)


def installed() -> dict[str, metadata.EntryPoint]:
    """name -> entry point, of all installed packages."""
    return code.installed(GROUP)


def add_installed(name: str, taken: Collection[str]) -> bool:
    """Load the method that an installed package registers as `name`; False without one. Raises OutsideError."""
    if name in ADDED:
        return True
    kept = None if name in taken else code.installed_entry(GROUP, name, partial(checked, taken=taken))
    if kept is None:
        return False
    entry, where, sha256 = kept
    ADDED[name] = Outside(entry=entry, where=where, sha256=sha256)
    return True
