# SPDX-License-Identifier: Apache-2.0
"""Evaluation of task models, and probes of bare encoders, on any split of any data set; see `command.py`."""
