"""Modes: which path to other sites works now.  They never decide where a message is written."""

from __future__ import annotations

from enum import Enum


class CoordinationMode(Enum):
    """``distributed``: the shared Redis answers.  ``degraded``: a local Redis.  ``isolated``: files alone."""

    DISTRIBUTED = "distributed"
    DEGRADED = "degraded"
    ISOLATED = "isolated"
