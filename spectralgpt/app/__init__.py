# SPDX-License-Identifier: Apache-2.0
"""A local page to look at a scene with a model: `explorer` computes, `server` answers, `static` is the page itself."""
