# SPDX-License-Identifier: Apache-2.0
"""`python tools/train.py` is `spectralgpt train`: without arguments it runs configs/quickstart.yaml."""

import sys

from spectralgpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
