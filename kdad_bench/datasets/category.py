"""What a data set is made of: samples, categories, and the fingerprint of their contents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

GOOD = "good"
MODALITIES = ("rgb", "depth", "rgb+depth")


class DatasetError(ValueError):
    """A data set cannot be used: one line that names the path, what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One test image: its file, its defect type ("good" if normal) and the file of its mask, if it has one."""

    path: Path
    defect: str
    mask: Path | None = None

    @property
    def label(self) -> bool:
        """True if the image is anomalous."""
        return self.defect != GOOD


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One category of a data set: the normal images to learn from and the test images to be judged.

    `train`, `validation` and the `path` of each test sample are RGB files, whatever the modality; the scan that
    belongs to one of them is found by `mvtec_3d_ad.scan_path`.
    """

    dataset: str
    name: str
    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    validation: tuple[Path, ...] = ()  # normal images shipped as a split of their own (MVTec 3D-AD)
    synthetic: bool = False
    modality: str = "rgb"  # rgb | depth | rgb+depth
    has_masks: bool = True
    has_scans: bool = False  # True if an xyz file lies beside every image

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the relative names and the contents of every file the modality reads.

        The hashes of single files are remembered by size and modification time, so that a second call is fast.
        Raises DatasetError if a file is missing.
        """
        from kdad_bench.datasets.cache import content_hashes

        files = [*self.train, *self.validation]
        for sample in self.test:
            files.append(sample.path)
            if sample.mask is not None:
                files.append(sample.mask)
        if self.modality != "rgb":
            from kdad_bench.datasets.mvtec_3d_ad import scan_path

            images = [*self.train, *self.validation, *(sample.path for sample in self.test)]
            files.extend(scan_path(path) for path in images)
        digest = hashlib.sha256(self.modality.encode())
        hashes = content_hashes(files)
        for path in sorted(files):
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{hashes[path]}\n".encode())
        return digest.hexdigest()
