"""The left wing: every detector that can be benchmarked, by the name it has in the CLI and in result rows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kdad_bench.methods import outside

if TYPE_CHECKING:
    from kdad_bench.methods.protocol import Entry

# name -> "module:entry". Strings, so that the command line can list and complete names without importing torch.
METHODS: dict[str, str] = {
    "pixel_mean": "kdad_bench.methods.pixel_mean:PIXEL_MEAN",
    "padim": "kdad_bench.methods.padim:PADIM",
    "spade": "kdad_bench.methods.spade:SPADE",
    "patchcore": "kdad_bench.methods.patchcore:PATCHCORE",
    "stfpm": "kdad_bench.methods.stfpm:STFPM",
    "rd4ad": "kdad_bench.methods.rd4ad:RD4AD",
    "rdpp": "kdad_bench.methods.rdpp:RDPP",
    "dinomaly": "kdad_bench.methods.dinomaly:DINOMALY",
    "mkd": "kdad_bench.methods.mkd:MKD",
    "efficientad": "kdad_bench.methods.efficientad:EFFICIENTAD",
    "stad": "kdad_bench.methods.stad:STAD",
    "destseg": "kdad_bench.methods.destseg:DESTSEG",
    "ast": "kdad_bench.methods.ast:AST",
    "eca_mskdad": "kdad_bench.methods.eca_mskdad:ECA_MSKDAD",
    "dskd": "kdad_bench.methods.dual_student:DSKD",
    "bmkd": "kdad_bench.methods.dual_student:BMKD",
    "fractalad": "kdad_bench.methods.fractalad:FRACTALAD",
}


def known(name: str) -> bool:
    """Whether `name` is that of a method: of this package, of a file that was added, or of an installed package.

    Raises OutsideError for one of an installed package that cannot be used.
    """
    return name in METHODS or outside.add_installed(name, METHODS)


def entry(name: str) -> Entry:
    """The entry registered under `name`; raises KeyError for a name that is not known."""
    if name not in METHODS and known(name):
        return outside.ADDED[name].entry
    module, _, attribute = METHODS[name].partition(":")
    found: Entry = getattr(import_module(module), attribute)
    return found
