"""`kdad-bench predict`: a saved model on new images."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from kdad_bench.cli import BadInput, Number

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
BATCH = 16


@click.command(context_settings={"show_default": True})
@click.argument("model", type=click.Path(path_type=Path, file_okay=False))
@click.argument("images", nargs=-1, required=True)
@click.option("--threshold", type=Number(), help="Call an image anomalous above this score.")
@click.option(
    "--normals", type=click.Path(path_type=Path), help="Folder of normal images, not trained on, to fit it on."
)
@click.option(
    "--false-alarms",
    type=Number(min=0.0, max=1.0, min_open=True, max_open=True),
    default=0.1,
    help="False-alarm rate that the fitted threshold is to keep.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for overlay PNGs and predictions.json.")
@click.option("--device", default="auto", help="auto, cpu or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def predict(model: Path, images: tuple[str, ...], **given: Any) -> None:
    """Score IMAGES (files, folders or globs) with the saved MODEL, a folder under models/ of a run.

    The decision threshold comes from --threshold, from the normal images in --normals, or from the normals that
    `run --save-models --hold-out SHARE` kept from the model. Without any of them only scores are given.
    """
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.decision import DecisionError
    from kdad_bench.harness.job import SelectionError
    from kdad_bench.methods.checkpoint import ModelError

    if given["out"]:
        try:
            given["out"].mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{given['out']}: no folder can be made there ({error.strerror}); choose --out") from error
    try:
        files = list(expanded(images))
        found = predictions(model, files, given)
    except (DatasetError, DecisionError, ModelError, SelectionError) as error:
        raise BadInput(str(error)) from error
    if given["out"]:
        (given["out"] / "predictions.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if given["as_json"]:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found["images"]:
        decision = "" if one["anomalous"] is None else ("  ANOMALOUS" if one["anomalous"] else "  normal")
        click.echo(f"{one['score']:.6g}{decision}  {one['image']}")
    click.echo(found["threshold_from"], err=True)


def expanded(names: Sequence[str]) -> Iterator[Path]:
    """The image files that `names` (files, folders, globs) stand for; BadInput for a name that stands for none."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(file) for file in glob.glob(name, recursive=True))
        if not found:
            raise BadInput(f"{name}: no such image, folder of images, or glob that matches one")
        yield from found


def predictions(model: Path, files: Sequence[Path], given: dict[str, Any]) -> dict[str, Any]:
    """Scores, decisions and, with --out, overlays of `files`."""
    import torch

    from kdad_bench.cli.run import device_from
    from kdad_bench.harness import decision
    from kdad_bench.methods.checkpoint import load

    device = torch.device(device_from(given["device"]))
    name, method = load(model, device)
    kept = decision.read(model)
    if given["normals"]:
        normals = list(scored(method, list(expanded([str(given["normals"])])), kept.resolution, device))
        kept = decision.Decision(
            category=kept.category,
            resolution=kept.resolution,
            normal_scores=tuple(sorted(score for _, score, _ in normals)),
            normal_map_peak=max(float(heat.max()) for _, _, heat in normals),
        )
    threshold, origin = threshold_of(kept, given)
    answers = list(scored(method, files, kept.resolution, device))
    peak = max([float(heat.max()) for _, _, heat in answers] + [kept.normal_map_peak or 0.0])
    results: list[dict[str, Any]] = []
    for path, score, heat in answers:
        overlay = write_overlay(path, heat, peak, given["out"], len(results)) if given["out"] else None
        anomalous = None if threshold is None else score > threshold
        results.append({"image": str(path), "score": score, "anomalous": anomalous, "overlay": overlay})
    return {
        "model": str(model),
        "method": name,
        "category": kept.category,
        "threshold": threshold,
        "threshold_from": origin,
        "images": results,
    }


def threshold_of(kept: Any, given: dict[str, Any]) -> tuple[float | None, str]:
    """(threshold or None, where it is from)."""
    if given["threshold"] is not None:
        return given["threshold"], f"threshold {given['threshold']:g}, as given"
    if not kept.normal_scores:
        hint = "train with `run --save-models --hold-out 0.2`, or give --threshold or --normals"
        return None, f"no threshold: the model has no held-out normals; {hint}"
    value = kept.threshold(given["false_alarms"])
    count = len(kept.normal_scores)
    return (
        value,
        f"threshold {value:g}, fitted on {count} held-out normals for a false-alarm rate of {given['false_alarms']:g}",
    )


def scored(method: Any, files: Sequence[Path], resolution: int, device: Any) -> Iterator[tuple[Path, float, Any]]:
    """(path, image score, map [R, R]) of each file, decoded as the harness decodes its data sets."""
    import numpy as np
    import torch

    from kdad_bench.datasets.decoding import read_rgb

    for start in range(0, len(files), BATCH):
        chunk = files[start : start + BATCH]
        pixels = np.stack([read_rgb(path, resolution)[0] for path in chunk])
        with torch.inference_mode():
            scores = method.score(torch.from_numpy(pixels).to(device).float() / 255)
        maps = scores.pixel.cpu().numpy()
        for path, score, heat in zip(chunk, scores.image.tolist(), maps, strict=True):
            yield path, float(score), heat


def write_overlay(path: Path, heat: Any, peak: float, out: Path, index: int) -> str:
    """The image with its map over it, as `<number>-<stem>.png` in `out`; returns the file.

    Colours run from 0 to `peak`, the highest value of any map of this call and of the held-out normals, so that
    pictures compare and a normal image does not glow.
    """
    from PIL import Image

    from kdad_bench.datasets.decoding import as_rgb, open_image
    from kdad_bench.harness.pictures import colours

    picture = as_rgb(open_image(path), path)
    layer = Image.fromarray(colours(heat, 0.0, peak)).resize(picture.size, Image.Resampling.BILINEAR)
    target = out / f"{index:04}-{path.stem}.png"
    Image.blend(picture, layer, 0.45).save(target)
    return str(target)
