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
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.output import Work

tree, modality, out = sys.argv[1:]
(category,) = datasets.categories("folder:" + tree, None, modality=modality)
chosen = Selection(methods=(("pixel_mean", ""),), categories=(category,), seeds=(0,), preset="quick", device="cpu")
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


@pytest.mark.parametrize("modality", ["rgb", "rgb+depth"])
def test_a_job_opens_no_test_file_before_its_evaluation(tmp_path: Path, modality: str) -> None:
    if modality == "rgb":
        tree = write_tree(tmp_path / "data", ("bolt",), train=4, test=2) / "bolt"
    else:
        tree = write_scans(tmp_path / "data" / "bagel")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JOB, str(tree), modality, str(tmp_path / "out")],
        env={**os.environ, "KDAD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "ok"
    events: list[str] = found["events"]
    evaluation = events.index("EVALUATION")
    before, after = events[:evaluation], events[evaluation + 1 :]
    assert [path for path in before if path.startswith(("test", "ground_truth"))] == []
    assert sum(path.startswith("train") for path in before) >= 4
    assert sum(path.startswith("test") for path in after) >= 4
    if modality == "rgb+depth":
        assert any(path.startswith("validation/good/xyz") for path in before)
