# SPDX-License-Identifier: Apache-2.0
"""Does pretraining help? On real Sentinel-2 patches with few labels, on two CPU cores.

    python benchmarks/transfer.py EUROSAT_FOLDER --out benchmarks/results/transfer-eurosat.json

The folder holds EuroSAT, or a part of it: the numbers recorded are from 100 images, ten of each class. Compared are

- pretrained: a masked autoencoder trained without labels, on the same images (`sample`) or on a scene from elsewhere
  (`scene`, the demo scene), with one normalisation for all images (`fixed`) or each image's own (`minmax`);
- random: the same encoder with the weights its pretraining began with;
- statistics: mean and standard deviation of each band, of the raw values and of what the encoder is given.

Judged are frozen features (tokens averaged over the image, spectral groups side by side, standardised) by logistic
regression, its strength chosen by cross-validation inside the training folds, and by 5 nearest neighbours; and
fine-tuning of the whole encoder. Repeated stratified 5-fold cross-validation; intervals are paired bootstraps over the
images, 95 %. `sample` pretraining sees the test images, but no label of any; `scene` never sees one of the images.

Pretraining (one core, about 10 minutes each) is kept in `--runs` and taken up again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RepeatedStratifiedKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import spectralgpt
from spectralgpt.data.batch import Views
from spectralgpt.data.datasets import open_dataset
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.demo import demo_scene
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.views import ViewConfig
from spectralgpt.heads.features import pooled_features
from spectralgpt.models.encoder import Encoder
from spectralgpt.train.initialize import start_from_geometry

SIZE, WINDOW, FOLDS = 64, 32, 5
STRENGTHS = [0.01, 0.1, 1.0, 10.0]
Floats = NDArray[np.float64]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of EuroSAT, whole or in part")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="pretraining is kept here")
    parser.add_argument("--model", default="tiny", choices=["tiny", "small"])
    parser.add_argument("--steps", type=int, default=1500, help="of pretraining (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="pretrainings of each kind, from 0 on (%(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="of the cross-validation (%(default)s)")
    parser.add_argument("--tune-epochs", type=int, default=30, help="of fine-tuning; 0 leaves it out (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=["sample-fixed", "sample-minmax", "scene-fixed"], metavar="KIND")
    parser.add_argument("--pretrain-only", action="store_true", help="stop after pretraining")
    parser.add_argument(
        "--out", type=Path, help="JSON, table and figure beside it; kinds are added to one that is there"
    )
    return parser.parse_args()


def recipe(kind: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The pretraining, as `spectralgpt train` takes it: windows of 32 pixels at the images' own resolution."""
    source, rule = kind.split("-")
    data: dict[str, Any] = {"root": str(demo_scene().path)}
    if source == "sample":
        quarter = (WINDOW / SIZE) ** 2
        data = {"root": args.root, "dataset": "eurosat", "train_split": "all", "val_split": "all"}
        data |= {"options": ["partial=true"], "crop_area": [0.8 * quarter, 1.4 * quarter]}
    data["normalization"] = rule if rule == "minmax" else str(statistics_file(source, args))
    stage = {"image_size": WINDOW, "steps": args.steps, "batch_size": 16, "lr": 1e-3, "warmup_steps": 100}
    return {
        "name": f"{args.model}-{kind}-{seed}",
        "output": str(args.runs),
        "seed": seed,
        "threads": 1,
        "model": {"name": args.model, "position_init": "sincos", "spectral_weight": 0.02},
        "data": data,
        "optim": {"clip_norm": 1.0},
        "stages": [{**stage, "mask_ratio": 0.75}],
        "validate_every": 0,
        "checkpoint_every": 500,
    }


def statistics_file(source: str, args: argparse.Namespace) -> Path:
    """Mean and deviation of each band of the images that are pretrained on, made once."""
    path = args.runs / f"{source}.json"
    if not path.exists():
        args.runs.mkdir(parents=True, exist_ok=True)
        kind = ["--dataset", "eurosat", "--option", "partial=true"]
        root = args.root
        if source == "scene":
            scene = demo_scene().path
            root, kind = scene.parent, ["--dataset", "folder", "--option", f"images={scene.name[:-1]}*"]
        command = [*_CLI, "prepare", "stats", str(root), *kind, "--split", "all", "--workers", "1", "-o", str(path)]
        subprocess.run(command, check=True)
    return path


_CLI = [sys.executable, "-m", "spectralgpt.cli"]


def pretrained(kind: str, seed: int, args: argparse.Namespace) -> Path:
    """The folder of a finished pretraining; one that was interrupted goes on."""
    tree = recipe(kind, seed, args)
    run, file = args.runs / tree["name"], args.runs / f"{tree['name']}.yaml"
    if not (run / "model" / "config.json").exists():
        file.write_text(yaml.safe_dump(tree))
        resume = ["--resume", str(run)] if run.exists() else []
        subprocess.run([*_CLI, "train", "--config", str(file), *resume], check=True)
    elif yaml.safe_load(file.read_text()) != tree:
        raise SystemExit(f"{run}: made by another recipe; choose other --runs")
    return run / "model"


def encoders(kind: str, seed: int, args: argparse.Namespace) -> tuple[Encoder, Encoder]:
    """The pretrained encoder, and the one that its pretraining began with."""
    autoencoder = spectralgpt.from_pretrained(pretrained(kind, seed, args))
    torch.manual_seed(seed)
    fresh = spectralgpt.create_autoencoder(**autoencoder.config.to_dict())
    start_from_geometry(fresh)
    fresh.encoder.normalization = autoencoder.encoder.normalization = autoencoder.normalization
    return autoencoder.encoder.eval(), fresh.encoder.eval()


def images(dataset: PatchDataset, normalizer: Normalizer) -> Tensor:
    """All images as they are, (N, C, 64, 64)."""
    views = Views(dataset, normalizer, ViewConfig(SIZE).evaluation("whole"))
    return views.__getitems__([(0, index) for index in range(len(dataset))]).images()["image"]


def rule_of(encoder: Encoder) -> Normalizer:
    """An encoder's own normalisation."""
    own = encoder.normalization
    assert own is not None
    if own["method"] == "fixed":
        return Normalizer("fixed", *(tuple(own[key]) for key in ("band_names", "offset", "scale")))
    return Normalizer(own["method"])


@torch.inference_mode()
def features(encoder: Encoder, pixels: Tensor) -> Floats:
    """Frozen features, (N, groups * width)."""
    return torch.cat([pooled_features(encoder, part, "concat") for part in pixels.split(25)]).double().numpy()


def band_statistics(pixels: Tensor) -> Floats:
    """Mean and deviation of each band, (N, 2 C)."""
    values = pixels.flatten(2).double()
    return torch.cat([values.mean(2), values.std(2)], 1).numpy()


def judged(values: Floats, labels: NDArray[np.int64], how: str, repeats: int) -> Floats:
    """How often each image was classified rightly when it was held out, (N,), over all repeats."""
    right = np.zeros(len(labels))
    for train, test in RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repeats, random_state=0).split(values, labels):
        model: Any = KNeighborsClassifier(5)
        if how == "linear":
            inner = StratifiedKFold(4, shuffle=True, random_state=0)
            model = GridSearchCV(LogisticRegression(max_iter=1000, tol=1e-3), {"C": STRENGTHS}, cv=inner)
        model = make_pipeline(StandardScaler(), model).fit(values[train], labels[train])
        right[test] += model.predict(values[test]) == labels[test]
    return right / repeats


def tuned(encoder: Encoder, pixels: Tensor, labels: NDArray[np.int64], seed: int, epochs: int) -> Floats:
    """The same for fine-tuning all weights, one repeat: trained on random windows, judged on whole images."""
    right, start = np.zeros(len(labels)), {key: value.clone() for key, value in encoder.state_dict().items()}
    target = torch.from_numpy(labels)
    fields = {**encoder.config.to_dict(), "drop_path": 0.1}
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(pixels, labels):
        torch.manual_seed(seed)
        model = spectralgpt.create_classifier(num_classes=10, task="single_label", spectral_pool="concat", **fields)
        model.encoder.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05)
        steps = epochs * -(-len(train) // 16)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
        model.train()
        for step in range(steps):
            if step * 16 % len(train) < 16:
                order = torch.from_numpy(train)[torch.randperm(len(train))]
            chosen = order[torch.arange(step * 16, step * 16 + 16) % len(train)]
            top, left = (int(torch.randint(SIZE - WINDOW + 1, ())) for _ in range(2))
            window = pixels[chosen, :, top : top + WINDOW, left : left + WINDOW]
            flips = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
            loss = F.cross_entropy(model(window.flip(flips)), target[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            right[test] = (model(pixels[test]).argmax(1) == target[test]).numpy()
    return right


def bound(gain: Floats) -> list[float]:
    """95 % interval of the mean of paired differences, by bootstrap over the images."""
    draws = np.random.default_rng(0).integers(len(gain), size=(10000, len(gain)))
    low, high = np.quantile(gain[draws].mean(1), (0.025, 0.975))
    return [float(low), float(high)]


def compare(kind: str, dataset: PatchDataset, labels: NDArray[np.int64], args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one kind of pretraining: accuracy by method and arm, and the gain of pretraining."""
    right: dict[str, dict[str, list[Floats]]] = {}
    pixels = torch.empty(0)
    for seed in range(args.seeds):
        for arm, encoder in zip(("pretrained", "random"), encoders(kind, seed, args), strict=True):
            pixels = images(dataset, rule_of(encoder))
            values = features(encoder, pixels)
            results = {how: judged(values, labels, how, args.repeats) for how in ("linear", "knn")}
            if args.tune_epochs:
                results["fine-tuning"] = tuned(encoder, pixels, labels, seed, args.tune_epochs)
            for how, share in results.items():
                right.setdefault(how, {}).setdefault(arm, []).append(share)
                print(f"{kind:14} seed {seed} {arm:10} {how:11} {share.mean():.3f}", flush=True)
    rival = {how: judged(band_statistics(pixels), labels, how, args.repeats) for how in ("linear", "knn")}
    result: dict[str, Any] = {}
    for how, arms in right.items():
        ours, theirs = (np.mean(arms[arm], axis=0) for arm in ("pretrained", "random"))
        result[how] = {arm: [float(share.mean()) for share in shares] for arm, shares in arms.items()}
        result[how] |= {"gain": float((ours - theirs).mean()), "gain interval": bound(ours - theirs)}
        if how in rival:
            result[how]["statistics of its input"] = float(rival[how].mean())
            result[how]["gain over statistics"] = float((ours - rival[how]).mean())
            result[how]["gain over statistics interval"] = bound(ours - rival[how])
    return result


def markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    rows = [
        "| pretraining | judged by | pretrained | random init | gain (95 % interval) | statistics of its input |",
        "|---|---|---|---|---|---|",
    ]
    for kind, methods in record["kinds"].items():
        for how, found in methods.items():
            low, high = found["gain interval"]
            rival = f"{found['statistics of its input']:.3f}" if "statistics of its input" in found else ""
            means = [f"{np.mean(found[arm]):.3f}" for arm in ("pretrained", "random")]
            gain = f"{100 * found['gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            rows.append(f"| {kind} | {how} | {means[0]} | {means[1]} | {gain} | {rival} |")
    raw = ", ".join(f"{how} {value:.3f}" for how, value in record["statistics of raw values"].items())
    return "\n".join([*rows, "", f"Band mean and deviation of the raw values: {raw}.", ""])


def figure(record: dict[str, Any], path: Path) -> None:
    """Accuracy of the arms, side by side; no picture of any image."""
    from matplotlib.figure import Figure

    groups = [(kind, how) for kind, methods in record["kinds"].items() for how in methods]
    chart = Figure(figsize=(1.5 + 1.25 * len(groups), 3.6), dpi=130, layout="constrained")
    axes = chart.add_subplot()
    styles = {"pretrained": "#20639b", "random": "#b8bcc4", "statistics of its input": "#e0a458"}
    for offset, (arm, colour) in enumerate(styles.items()):
        heights = [np.mean(record["kinds"][kind][how].get(arm, np.nan)) for kind, how in groups]
        axes.bar(np.arange(len(groups)) + 0.27 * (offset - 1), heights, 0.25, color=colour, label=arm)
    axes.axhline(record["statistics of raw values"]["linear"], color="#555555", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(groups)), [f"{how}\n{kind}" for kind, how in groups], fontsize=7)
    axes.set(ylabel="accuracy, held-out images", ylim=(0, 1), title="dotted: band statistics of raw values, linear")
    axes.legend(frameon=False, fontsize=8, ncols=3)
    chart.savefig(path)


def main() -> None:
    """Pretrains, judges, writes."""
    args = arguments()
    torch.set_num_threads(1)
    started = time.time()
    dataset = open_dataset("eurosat", args.root, "all", partial=True)
    labels = np.asarray(dataset.labels())
    if args.pretrain_only:
        for kind in args.kinds:
            for seed in range(args.seeds):
                pretrained(kind, seed, args)
        return
    settings = {
        "benchmark": "transfer",
        "images": len(dataset),
        "classes": len(dataset.classes),
        "model": args.model,
        "steps": args.steps,
        "folds": FOLDS,
        "repeats": args.repeats,
        "fine-tuning epochs": args.tune_epochs,
        "torch": torch.__version__,
    }
    record: dict[str, Any] = {**settings, "seconds": 0, "kinds": {}}
    if args.out and args.out.exists():
        record = json.loads(args.out.read_text())
        if any(record[key] != value for key, value in settings.items()):
            raise SystemExit(f"{args.out}: made with other settings; choose another --out")
    if "statistics of raw values" not in record:
        raw = band_statistics(images(dataset, Normalizer("none")))
        values = {how: float(judged(raw, labels, how, args.repeats).mean()) for how in ("linear", "knn")}
        record["statistics of raw values"] = values
    for kind in args.kinds:
        record["kinds"][kind] = compare(kind, dataset, labels, args)
    record["seconds"] += round(time.time() - started)
    print(markdown(record))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(markdown(record))
        figure(record, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
