"""Which recipe the quick or standard preset of each method has: candidates compared on data that no table shows.

    python benchmarks/recipes.py --out /tmp/recipes --seeds 1
    python benchmarks/recipes.py --preset standard --out /tmp/recipes --seeds 1     # ResNet-18 at 128 px

Every candidate is run on `rehearsal`, whose subjects are not those of `synthetic`; the winner is the candidate with
the highest mean of image AUROC and AUPRO@0.3 over its categories and seeds. No real image and no category that a table
shows takes part. Run again, it goes on where it stopped. The tables of docs/recipes.md are its, of before the presets
took over the winners: the recipes are the same, their labels are not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from statistics import mean

from kdad_bench.leaderboard.store import read
from kdad_bench.methods import entry

# method -> candidates: what each sets apart from the preset; the first is the preset as it stands
Candidates = dict[str, tuple[dict[str, object], ...]]
QUICK: Candidates = {
    "stfpm": ({}, {"learning_rate": 0.2}, {"learning_rate": 0.4}),
    "rd4ad": ({}, {"learning_rate": 0.0025}, {"learning_rate": 0.005}),
    "eca_mskdad": ({}, {"learning_rate": 0.2}, {"learning_rate": 0.4}),
    "dskd": ({}, {"learning_rate": 0.0025}, {"learning_rate": 0.005}),
    "bmkd": ({}, {"learning_rate": 0.0025}, {"learning_rate": 0.01}),
    "dinomaly": ({}, {"learning_rate": 0.002}, {"learning_rate": 0.004}),
    "mkd": (
        {},
        {"learning_rate": 0.003},
        {"learning_rate": 0.003, "scored": 3},
        {"learning_rate": 0.003, "value_weight": 0.5},
    ),
    "fractalad": ({}, {"learning_rate": 0.003}, {"learning_rate": 0.003, "kd": True, "weight_decay": 0.001}),
    "efficientad": ({}, {"hard": 0.0}, {"distilling": 0.2}, {"hard": 0.0, "distilling": 0.2}),
    "stad": ({}, {"width": 32, "steps": 20}),
    "destseg": ({}, {"learning_rate": 0.003}),
    "ast": ({}, {"learning_rate": 0.005}),
}
# smaller batches have as many images in more steps
STANDARD: Candidates = {
    "stfpm": (
        {"steps": 600},
        {"steps": 600, "learning_rate": 0.4},
        {"batch_size": 1, "steps": 1200},
        {"batch_size": 4, "steps": 300},
        {"batch_size": 4, "steps": 300, "learning_rate": 0.4},
        {"batch_size": 8},
        {"batch_size": 8, "learning_rate": 0.4},
        {"batch_size": 8, "learning_rate": 1.6},
    ),
    "rd4ad": (
        {},
        {"learning_rate": 0.01},
        {"batch_size": 4, "steps": 300},
        {"batch_size": 4, "steps": 300, "learning_rate": 0.0025},
    ),
    "eca_mskdad": ({"steps": 600}, {"batch_size": 8}, {"batch_size": 8, "learning_rate": 0.4}),
    "mkd": (
        {"steps": 600},
        {"batch_size": 4, "steps": 300},
        {"batch_size": 8},
        {"batch_size": 8, "value_weight": 0.01},
    ),
    "dskd": ({"steps": 600}, {"batch_size": 4, "steps": 300}, {"batch_size": 8}),
    "bmkd": ({}, {"batch_size": 2, "steps": 600}),
    "fractalad": (
        {},
        {"kd": False, "weight_decay": 0.01},
        {"find_object": True},
        {"batch_size": 2, "steps": 600},
    ),
    "stad": ({"image_size": 256}, {}, {"width": 16}, {"image_size": 256, "scales": (65,)}),
    "destseg": ({"steps": 120}, {"steps": 120, "learning_rate": 0.001}, {"steps": 240, "batch_size": 2}),
    "ast": ({}, {"learning_rate": 0.003}),
    "efficientad": (
        {"steps": 400},
        {"steps": 400, "distilling": 0.35},
        {"steps": 400, "distilling": 0.35, "hard": 0.0},
        {"distilling": 0.35},
        {"distilling": 0.35, "hard": 0.0},
    ),
}
CANDIDATES = {"quick": QUICK, "standard": STANDARD}
# of every candidate of a standard recipe unless it says otherwise, so that choosing is quick
SMALL: dict[str, object] = {"image_size": 128, "resolution": 128, "steps": 150}


def label(preset: str, method: str, candidate: dict[str, object]) -> str:
    """The preset's label in rows: what differs from the preset's own settings."""
    own = entry(method).presets[preset]
    asked = candidate if preset == "quick" else {**SMALL, **candidate}
    said = {name: setting for name, setting in asked.items() if getattr(own, name, None) != setting}
    inside = ",".join(f"{name}={said[name]}" for name in sorted(said))
    return f"{preset}[{inside}]" if inside else preset


def value(setting: object) -> str:
    """As TOML."""
    if isinstance(setting, tuple):
        return str(list(setting))
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--preset", choices=list(CANDIDATES), default="quick")
    parser.add_argument("--weights", help="of the standard preset's teacher; without it they are downloaded")
    parser.add_argument("--method", choices=sorted(QUICK | STANDARD), action="append")
    given = parser.parse_args()
    candidates = CANDIDATES[given.preset]
    methods = given.method or list(candidates)
    common = ["--preset", given.preset, "--seeds", given.seeds, "--threads", given.threads, "--out", given.out]
    common += [f"--weights={given.weights}"] if given.weights else []
    common += [f"--{name.replace('_', '-')}={setting}" for name, setting in SMALL.items() if given.preset != "quick"]
    for method in methods:
        for candidate in candidates[method]:
            settings = [f"--set={method}.{name}={value(setting)}" for name, setting in candidate.items()]
            command = [sys.executable, "-m", "kdad_bench", "run", "--dataset", "rehearsal", "--method", method, *common]
            command += ["--no-pictures", "--no-measure-speed"]
            subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    found = defaultdict(list)
    for row in read(given.out, ("method", "preset", "image_auroc", "aupro_30", "status", "dataset")).rows():
        if row["status"] == "ok" and row["dataset"] == "rehearsal":
            found[row["method"], row["preset"]].append((row["image_auroc"], row["aupro_30"]))
    print("| method | recipe | jobs | image AUROC | AUPRO@0.3 | mean of both |")
    print("|---|---|---:|---:|---:|---:|")
    for method in methods:
        names = [label(given.preset, method, candidate) for candidate in candidates[method]]
        scores = {name: tuple(map(mean, zip(*found[method, name], strict=True))) for name in names}
        best = max(names, key=lambda name: mean(scores[name]))
        for name in names:
            image, region = scores[name]
            mark = "**" if name == best else ""
            count = len(found[method, name])
            print(
                f"| {method} | {name} | {count} | {image:.3f} | {region:.3f} | {mark}{mean(scores[name]):.3f}{mark} |"
            )


if __name__ == "__main__":
    main()
