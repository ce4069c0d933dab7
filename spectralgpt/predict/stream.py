# SPDX-License-Identifier: Apache-2.0
"""A function of windows over scenes on disk, row by row; at most one batch is lost to a kill.

The rows of windows are shared out among processes in contiguous ranges. A range begins by computing the rows above it
that reach into it, whose output is another process's: a little twice, instead of an exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from torch import Tensor

from spectralgpt.predict.array import Function, results
from spectralgpt.predict.source import Source
from spectralgpt.predict.windows import Blend, Floats
from spectralgpt.predict.work import Work

Progress = Callable[[int], object]
"""Called with a number of windows that are done."""


def share(count: int, rank: int, world_size: int) -> range:
    """The rows of windows of one of several processes."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def stream(
    function: Function,
    source: Source,
    batch_size: int,
    work: Work,
    indices: Collection[int],
    rank: int = 0,
    progress: Progress = lambda _: None,
) -> Iterator[tuple[int, int, Floats]]:
    """Applies a function to rows of windows and blends the results.

    Args:
        function: as in `predict_array`, which gives the same bits.
        source: the windows.
        batch_size: windows at a time, at most.
        work: keeps what is computed.
        indices: rows of windows to finish, ascending.
        rank: number of this process.
        progress: is told of windows as they are done.

    Yields:
        A row of windows, the first row of the output that is finished with it, and those rows `(K, n, W)`; K is 0
        while there is no valid pixel. The array is valid until the next step.
    """
    windows, blend = source.windows, None
    previous = -2
    for index in indices:
        if blend is None or index != previous + 1:
            first = windows.first_needed(index)
            blend = Blend(windows, first)
            for above in range(first, index):
                _compute(function, source, batch_size, work, above, rank, blend)
                blend.finish()
        _compute(function, source, batch_size, work, index, rank, blend)
        progress(len(windows.columns))
        yield index, *blend.finish()
        previous = index
        if index + 1 < len(windows.rows):
            work.drop_logs(rank, windows.first_needed(index + 1))


def _compute(
    function: Function, source: Source, batch_size: int, work: Work, index: int, rank: int, blend: Blend
) -> None:
    """One row of windows: what the log holds, then the other batches, each logged before it is blended."""
    batches, row = source.windows.batches(batch_size), source.windows.rows[index]
    log = work.log(rank, index)

    def give(columns: list[int], values: Floats | None) -> None:
        for place, column in enumerate(columns):
            blend.add(column, None if values is None else values[place])

    done = 0
    for values in log.replay():
        give(batches[done], values)
        done += 1
    for columns in batches[done:]:
        batch: list[Tensor] | None = source.batch(row, columns, len(batches[0]))
        values = None if batch is None else results(function, batch, len(columns), source.cell)
        log.append(values)
        give(columns, values)
