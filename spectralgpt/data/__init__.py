# SPDX-License-Identifier: Apache-2.0
"""From files to normalised windows: bands by name, no-data as validity, one normalisation per image.

In the order of the data: `discover` finds scenes, `raster` reads files (`envi` and `tags` know their headers),
`places`, `products`, `stac` and `opening` say which band lies where and what its values mean by the cards of
`bands` and `sensors`, `scene` puts named bands on one grid with `resample`, `stack` several dates, `normalize` fits
it, `scene_set` splits it, `datasets` cut windows, `loader` orders and batches them. Of data sets of patches,
`datasets` give records, `convert` turns those into `shards`, `statistics` sums them up, `views` draws crops and
flips, and `batch` packs raw pixels for the device. Nothing here knows a model.
"""
