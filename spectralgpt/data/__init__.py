# SPDX-License-Identifier: Apache-2.0
"""From files to normalised windows: bands by name, no-data as validity, one normalisation per image.

In the order of the data: `discover` finds scenes, `raster` reads files, `scene` puts named bands on one grid
with `resample`, `normalize` fits it, `scene_set` splits it, `datasets` cut windows, `loader` orders and
batches them. Nothing here knows a model.
"""
