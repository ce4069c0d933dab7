# SPDX-License-Identifier: Apache-2.0
"""Task models small enough to build in every test."""

from __future__ import annotations

import spectralgpt

SMALL = {"image_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}


def classifier(**config):
    return spectralgpt.create_classifier("tiny", 5, **{**SMALL, **config})


def segmenter(**config):
    return spectralgpt.create_segmenter("tiny", 5, **{**SMALL, **config})


def change_detector(**config):
    return spectralgpt.create_change_detector("tiny", **{**SMALL, **config})


def autoencoder(**config):
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}
    return spectralgpt.create_autoencoder("tiny", **{**SMALL, **decoder, **config})
