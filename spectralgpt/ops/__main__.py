# SPDX-License-Identifier: Apache-2.0
"""`python -m spectralgpt.ops`: what was built, and which implementation serves each op on each device."""

from spectralgpt.ops import _native, _registry

for key, value in _native.build_info().items():
    print(f"{key}: {value}")
if not _native.devices():
    print(_native.reason())
print(_registry.table())
