# SPDX-License-Identifier: Apache-2.0
"""Colours of classes that define none: the same in maps and in pictures of labels."""

from __future__ import annotations

import colorsys

_DISTINCT = (
    "#4363d8 #3cb44b #ffe119 #e6194b #f58231 #911eb4 #46f0f0 #f032e6 #bcf60c #fabebe "
    "#008080 #e6beff #9a6324 #fffac8 #800000 #aaffc3 #808000 #ffd8b1 #000075 #808080"
).split()
_GOLDEN = 0.618033988749895


def palette(count: int) -> tuple[str, ...]:
    """So many colours "#rrggbb", of which the first 20 are easily told apart; those of fewer begin those of more."""
    more = [
        colorsys.hsv_to_rgb(i * _GOLDEN % 1, 0.55 + 0.35 * (i % 2), 0.95 - 0.3 * (i // 2 % 2))
        for i in range(count - len(_DISTINCT))
    ]
    rest = ["#" + bytes(round(255 * part) for part in colour).hex() for colour in more]
    return tuple((_DISTINCT + rest)[:count])
