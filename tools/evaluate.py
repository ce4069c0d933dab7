# SPDX-License-Identifier: Apache-2.0
"""`python tools/evaluate.py` is `spectralgpt evaluate`: scores of a model on a split, as JSON and a page."""

import sys

from spectralgpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
