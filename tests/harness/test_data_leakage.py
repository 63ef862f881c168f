"""Which files a whole job opens, and when: every open call of the process is traced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_tree
from tests.datasets.test_mvtec_3d_ad import write_scans

JOB = """
import json, sys
from pathlib import Path
from kdad_bench.harness import run
from kdad_bench import datasets
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.output import Work

tree, modality, out, contamination = sys.argv[1:]
axes = Axes(contamination=float(contamination) if contamination else None)
(category,) = datasets.categories("folder:" + tree, None, modality=modality)
chosen = Selection(
    methods=(("pixel_mean", ""),), categories=(category,), seeds=(0,), preset="quick", device="cpu", axes=(axes,)
)
(job,) = plan(chosen, {})
print(job.id, file=sys.stderr)  # the identity holds a hash of all files: it is taken before the job, not during it

events = []
def remember(event, arguments):
    if event == "open" and str(arguments[0]).startswith(tree):
        events.append(str(Path(arguments[0]).relative_to(tree)))
sys.addaudithook(remember)

original = run.test_set
def marked(job):
    events.append("EVALUATION")
    return original(job)
run.test_set = marked
row = run.run(job, Work(out=out), lambda step, terms: None)
print(json.dumps({"status": row.status, "events": events}))
"""


def opened(tree: Path, modality: str, folder: Path, contamination: str = "") -> tuple[list[str], list[str]]:
    """The files that a job opens before its evaluation, and those after."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JOB, str(tree), modality, str(folder / "out"), contamination],
        env={**os.environ, "KDAD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "ok"
    events: list[str] = found["events"]
    evaluation = events.index("EVALUATION")
    return events[:evaluation], events[evaluation + 1 :]


@pytest.mark.parametrize("modality", ["rgb", "rgb+depth"])
def test_a_job_opens_no_test_file_before_its_evaluation(tmp_path: Path, modality: str) -> None:
    if modality == "rgb":
        tree = write_tree(tmp_path / "data", ("bolt",), train=4, test=2) / "bolt"
    else:
        tree = write_scans(tmp_path / "data" / "bagel")
    before, after = opened(tree, modality, tmp_path)
    assert [path for path in before if path.startswith(("test", "ground_truth"))] == []
    assert sum(path.startswith("train") for path in before) >= 4
    assert sum(path.startswith("test") for path in after) >= 4
    if modality == "rgb+depth":
        assert any(path.startswith("validation/good/xyz") for path in before)


def test_a_contamination_opens_the_defective_images_set_aside_and_no_other_test_file(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "data", ("bolt",), train=6, test=4) / "bolt"
    before, after = opened(tree, "rgb", tmp_path, contamination="0.2")
    early = {path for path in before if path.startswith(("test", "ground_truth"))}
    assert len(early) == 2
    assert all(path.startswith("test/spot/") for path in early)
    assert {path for path in after if path.startswith("test/spot/")} - early
