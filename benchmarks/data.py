# SPDX-License-Identifier: Apache-2.0
"""From files to float batches on one core: shards, the converter, and the published pipeline beside them.

    pip install tifffile torchvision
    python benchmarks/data.py --out data.json

Everything works on images that this script writes (page cache warm): 12 x 96 x 96 and, for the converter, 13 x 64 x 64
uint16. The published pipeline is what SpectralGPT's data loading does to a file, with the public libraries it calls:
tifffile, minimum and maximum of each band, ToTensor, RandomResizedCrop (bicubic), RandomHorizontalFlip. Views are those
of training: boxes of 0.2 to 1 of the image to 96 x 96, antialiased bicubic, flips, minimum and maximum, 128 to a batch.
What the converter cannot undercut is rasterio alone on the same files: open, read 12 bands, close. All are timed in
turn, round by round. The minimum of the process's CPU time is the number to compare where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import tifffile
import torch
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from spectralgpt.data import splits
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.batch import Views
from spectralgpt.data.convert import convert
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.datasets.eurosat import EuroSAT
from spectralgpt.data.datasets.images import open_image, whole
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.record import Record
from spectralgpt.data.shards import Shards
from spectralgpt.data.views import ViewConfig
from spectralgpt.ops import _registry

SIZE = 96


class Patches(PatchDataset):
    """Files of 12 bands in one folder."""

    split = "train"
    card = SENTINEL2.select(SENTINEL2_12)

    def __init__(self, root: Path) -> None:
        """Lists the files."""
        self.root, self.notes, self.paths = root, [], sorted(root.glob("*.tif"))

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """File name."""
        return self.paths[index].name

    def read(self, index: int) -> Record:
        """The whole file."""
        return whole(open_image(self.paths[index], SENTINEL2, self.bands, SENTINEL2_12, self.name(index)))


def write(path: Path, bands: int, size: int, seed: int) -> None:
    """A GeoTIFF of noise; bands of a pixel lie together, as GDAL writes them unasked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 10_000, (bands, size, size)).astype(np.uint16)
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    shape = {"count": bands, "height": size, "width": size, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as file:
        file.write(pixels)


def reader(shards: Shards, order: list[int], batch: int) -> Callable[[], None]:
    """Reads records and copies their pixels into a batch, as a loader does."""
    buffer = np.empty((batch, *shards.read(0).pixels.shape), np.uint16)

    def run() -> None:
        for place, index in enumerate(order):
            buffer[place % batch] = shards.read(index).pixels

    return run


def copier(shards: Shards, order: list[int], batch: int) -> Callable[[], None]:
    """The copy alone: what this machine can do just now."""
    pixels = [shards.read(index).pixels for index in range(len(shards))]
    buffer = np.empty((batch, *pixels[0].shape), np.uint16)

    def run() -> None:
        for place, index in enumerate(order):
            buffer[place % batch] = pixels[index]

    return run


def batches(shards: Shards, order: list[int], batch: int) -> Callable[[], None]:
    """Random resized crops of whole batches, as float32."""
    views = Views(shards, Normalizer("minmax"), ViewConfig(size=SIZE))

    def run() -> None:
        for start in range(0, len(order), batch):
            views.__getitems__([(0, index) for index in order[start : start + batch]]).images()

    return run


def published(paths: list[Path]) -> Callable[[], None]:
    """One file after another, and a batch of them."""
    view = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
        ]
    )

    def run() -> None:
        images = []
        for path in paths:
            image = tifffile.imread(path).astype(np.float32)
            low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
            images.append(view((image - low) / (high - low + 1e-10)))
        torch.stack(images)

    return run


def opened(paths: list[Path]) -> Callable[[], None]:
    """What rasterio itself takes to read 12 of 13 bands."""

    def run() -> None:
        for path in paths:
            with rasterio.open(path, driver="GTiff", sharing=False) as file:
                file.read(list(range(1, 13)))

    return run


def measured(run: Callable[[], None], count: int) -> tuple[float, float]:
    """Images per second of CPU time and of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


def main() -> int:
    """Prints the table."""
    args = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(name)
        for index in range(args.images):
            write(root / "patches" / f"{index:05}.tif", 12, SIZE, index)
        files = [root / "eurosat" / path for path in list(splits.eurosat())[: args.images]]
        for index, path in enumerate(files):
            write(path, 13, 64, index)
        patches = Patches(root / "patches")
        convert(patches, "patches", root / "shards", num_workers=0)
        eurosat = EuroSAT(root / "eurosat", "all", partial=True)
        order = np.random.default_rng(0).permutation(args.images).tolist()
        some = order[: args.batch]
        out = iter(range(args.rounds + 1))
        plain, verified = Shards(root / "shards"), Shards(root / "shards", verify=True)
        runs: dict[str, tuple[Callable[[], object], int]] = {
            "copy of the pixels alone": (copier(plain, order * 4, args.batch), 4 * args.images),
            "shards, read": (reader(plain, order * 4, args.batch), 4 * args.images),
            "shards, read and verified": (reader(verified, order * 4, args.batch), 4 * args.images),
            "shards to float batches": (batches(plain, order, args.batch), args.images),
            "GeoTIFF, read": (lambda: [patches.read(index) for index in some], len(some)),
            "GeoTIFF, published pipeline": (published([patches.paths[index] for index in some]), len(some)),
            "EuroSAT, rasterio alone": (opened(files), len(files)),
            "converter, EuroSAT": (
                lambda: convert(eurosat, "eurosat", root / f"converted-{next(out)}", num_workers=0),
                args.images,
            ),
        }
        rates: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
        for round_ in range(args.rounds + 1):  # the first warms up
            for key, (run, count) in runs.items():
                rate = measured(run, count)
                if round_:
                    rates[key].append(rate)
    best = {key: [max(values) for values in zip(*found, strict=True)] for key, found in rates.items()}
    ratio = best["shards to float batches"][0] / best["GeoTIFF, published pipeline"][0]
    share = best["converter, EuroSAT"][0] / best["EuroSAT, rasterio alone"][0]
    print(f"{'images/s':30}{'CPU time':>10}{'clock':>10}")
    for key, (cpu, wall) in best.items():
        print(f"{key:30}{cpu:10.0f}{wall:10.0f}")
    print(f"{'batches / published pipeline':30}{ratio:10.1f}")
    print(f"{'converter / rasterio alone':30}{share:10.2f}")
    if args.out:
        rows = {key: {"per_cpu_s": cpu, "per_s": wall} for key, (cpu, wall) in best.items()}
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        versions = {"torch": torch.__version__, "rasterio": rasterio.__version__, "ops": _registry.table()}
        about = {"date": time.strftime("%Y-%m-%d"), "cpu": _cpu(), "load": os.getloadavg()[0], **settings, **versions}
        ratios = {"batches / published pipeline": ratio, "converter / rasterio alone": share}
        args.out.write_text(json.dumps({**about, **ratios, "rates": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
