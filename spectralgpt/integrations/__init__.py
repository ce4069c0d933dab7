# SPDX-License-Identifier: Apache-2.0
"""Thin adapters to the neighbours' libraries; each is imported on demand and needs its extra.

`hub` is the Hugging Face hub, `timm`, `terratorch` and `torchgeo` register models, weights and data sets there. Nothing
in the package imports them, and none of them changes what a model computes.
"""
