"""`kdad-bench new`: files to begin with."""

from __future__ import annotations

import builtins
import re
import shlex
from pathlib import Path

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.parameters import LocalPath
from kdad_bench.leaderboard.text import printable

TEMPLATE = Path(__file__).parents[1] / "methods" / "template.py.txt"


@click.group()
def new() -> None:
    """Write a file to begin with."""


@new.command()
@click.argument("name")
@click.option("--out", type=LocalPath(file_okay=False), default=".", show_default=True, help="Folder of the new file.")
def method(name: str, out: Path) -> None:
    """Write NAME.py: a commented student-teacher method that works, to be changed into yours."""
    import keyword

    from kdad_bench.methods import METHODS
    from kdad_bench.methods.outside import NAME

    if keyword.iskeyword(name):
        raise BadInput(f"{name}: is a word of Python; take another name")
    if not NAME.fullmatch(name):
        raise BadInput(f"{name}: a method's name is of small letters, digits and _, beginning with a letter")
    if name in METHODS:
        raise BadInput(f"{name}: there is a method of that name; take another")
    path = out / f"{name}.py"
    text = TEMPLATE.read_text(encoding="utf-8")
    words = {"NAME": name, "CLASS": class_name(name, text), "ENTRY": name.upper()}
    for word, value in words.items():
        text = text.replace(f"%{word}%", value)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise BadInput(f"{path}: is there already; take another name or folder") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); choose --out") from error
    click.echo(printable(f"{path}: written; now"))
    for command in ("check-method", "run --method"):
        click.echo(printable(f"  kdad-bench {command} {shlex.quote(str(path))}"))


def class_name(name: str, text: str) -> str:
    """`my_own` -> `MyOwn`, and `scores` -> `ScoresMethod`, which hides no name that `text` or Python has."""
    found = "".join(part.capitalize() for part in name.split("_"))
    taken = {*re.findall(r"\w+", text), *dir(builtins), name.upper()}
    return f"{found}Method" if {found, f"{found}Settings"} & taken else found
