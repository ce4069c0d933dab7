# SPDX-License-Identifier: Apache-2.0
"""Models on whole scenes: windows, blending, georeferenced output."""
