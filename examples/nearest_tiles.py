# SPDX-License-Identifier: Apache-2.0
"""Finds the tiles that look most like one of them, over any number of scenes.

    spectralgpt embed SCENE --model RUN --out scene.tif --tile 96
    python examples/nearest_tiles.py scene-tiles.parquet --tile 3-5 --count 10

Each table is what `spectralgpt embed --tile` wrote. Tiles are compared by the cosine between their embeddings, from
which the mean over all tiles is taken away first: what all tiles share says nothing about any.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import geopandas  # type: ignore[import-untyped]
import numpy as np
import pandas  # type: ignore[import-untyped]


def nearest(table: pandas.DataFrame, place: int, count: int) -> pandas.DataFrame:
    """The `count` rows most like the one at `place`, that one left out, with the column `similarity`."""
    vectors = np.stack(table["embedding"].to_numpy()).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = vectors @ vectors[place]
    order = [row for row in np.argsort(-similarity, kind="stable") if row != place][:count]
    return table.iloc[order].assign(similarity=similarity[order])


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tables", nargs="+", type=Path, help="what `spectralgpt embed --tile` wrote")
    parser.add_argument("--tile", required=True, help="name of the tile to look for, in the first table")
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    tables = [geopandas.read_parquet(path).assign(scene=path.stem) for path in options.tables]
    if not (tables[0]["tile"] == options.tile).any():
        print(f"error: --tile: expected a tile of {options.tables[0]}, got {options.tile}", file=sys.stderr)
        return 2
    table = pandas.concat(tables, ignore_index=True)
    found = nearest(table, int((tables[0]["tile"] == options.tile).to_numpy().argmax()), options.count)
    print(found[["scene", "tile", "row", "column", "valid", "similarity"]].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
