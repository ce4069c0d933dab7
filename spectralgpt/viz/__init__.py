# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model sees and rebuilds; the only subpackage that imports matplotlib."""
