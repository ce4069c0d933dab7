# SPDX-License-Identifier: Apache-2.0
"""`python tools/predict.py SCENE --model RUN --out map.tif` is `spectralgpt predict`."""

import sys

from spectralgpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
