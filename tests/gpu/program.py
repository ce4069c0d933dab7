# SPDX-License-Identifier: Apache-2.0
"""One small call of every op on the GPU, forward and backward: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m tests.gpu.program
"""

from __future__ import annotations

import torch

from tests.ops.calls import CALLS, results


def main(device: str = "cuda") -> None:
    """Each op, and once more with an odd batch."""
    for call in CALLS:
        for batch in (2, 3):
            outputs = results(call, tuple(tensor.to(device) for tensor in call.arguments(1, batch)))
            assert all(output.device.type == torch.device(device).type for output in outputs)
    if device == "cuda":
        torch.cuda.synchronize()
    print("ops done")


if __name__ == "__main__":
    main()
