# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
from shapely import box

EXAMPLE = Path(__file__).parents[2] / "examples" / "nearest_tiles.py"


def test_the_most_alike_come_first(tmp_path):
    """Vectors around two directions: the neighbours of one are the others of its kind, over both tables."""
    generator = np.random.default_rng(0)
    directions = np.eye(8)[[0, 0, 0, 1, 1, 1]]
    for scene in "ab":
        vectors = directions * 3 + generator.normal(0, 0.1, (6, 8)) + 5
        table = {
            "tile": [f"0-{number}" for number in range(6)],
            "row": 0,
            "column": np.arange(6) * 96,
            "valid": 1.0,
            "embedding": [vector.tolist() for vector in vectors],
        }
        frame = geopandas.GeoDataFrame(table, geometry=[box(x, 0, x + 1, 1) for x in range(6)], crs="EPSG:32632")
        frame.to_parquet(tmp_path / f"{scene}.parquet")
    tables = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    command = [sys.executable, str(EXAMPLE), *tables, "--tile"]
    found = subprocess.run([*command, "0-4", "--count", "5"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()[1:]]
    assert {row[1] for row in rows} == {"0-3", "0-4", "0-5"} and len(rows) == 5
    assert {row[0] for row in rows} == {"a", "b"} and min(float(row[-1]) for row in rows) > 0.9
    missing = subprocess.run([*command, "9-9"], capture_output=True, text=True)
    assert missing.returncode == 2 and "expected a tile of" in missing.stderr
