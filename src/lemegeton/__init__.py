"""Lemegeton: a message bus for one hub and its agents.

Every public name can be had from here.  They are loaded when they are first asked for: a command that only publishes
does not pay for agents and hubs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lemegeton.version import VERSION

if TYPE_CHECKING:
    from lemegeton import events
    from lemegeton.agent import BaseAgent
    from lemegeton.bus import MessageBus
    from lemegeton.config import Settings
    from lemegeton.deadletters import DeadLetter, DeadLetters, Redriven
    from lemegeton.errors import (
        AssignmentFailed,
        BusClosed,
        BusFull,
        CheckpointFull,
        DiskFull,
        HomeRefused,
        InvalidMessage,
        InvalidSetting,
        LemegetonError,
        LogError,
        NameTaken,
        NoAgent,
        NoReply,
        NotReached,
        PositionLost,
        RedisLost,
        RedisRefused,
        Rejected,
        RequestFailed,
    )
    from lemegeton.hub import Hub
    from lemegeton.loops import run
    from lemegeton.message import Message, MessagePriority, MessageType, Receipt
    from lemegeton.modes import CoordinationMode, CoordinationModeManager
    from lemegeton.stats import Stats
    from lemegeton.subscription import Subscription

__version__ = VERSION

_HOMES = {
    "agent": ("BaseAgent",),
    "bus": ("MessageBus",),
    "config": ("Settings",),
    "deadletters": ("DeadLetter", "DeadLetters", "Redriven"),
    "errors": (
        "AssignmentFailed", "BusClosed", "BusFull", "CheckpointFull", "DiskFull", "HomeRefused", "InvalidMessage",
        "InvalidSetting", "LemegetonError", "LogError", "NameTaken", "NoAgent", "NoReply", "NotReached",
        "PositionLost", "RedisLost", "RedisRefused", "Rejected", "RequestFailed",
    ),
    "hub": ("Hub",),
    "loops": ("run",),
    "message": ("Message", "MessagePriority", "MessageType", "Receipt"),
    "modes": ("CoordinationMode", "CoordinationModeManager"),
    "stats": ("Stats",),
    "subscription": ("Subscription",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AssignmentFailed",
    "BaseAgent",
    "BusClosed",
    "BusFull",
    "CheckpointFull",
    "CoordinationMode",
    "CoordinationModeManager",
    "DeadLetter",
    "DeadLetters",
    "DiskFull",
    "HomeRefused",
    "Hub",
    "InvalidMessage",
    "InvalidSetting",
    "LemegetonError",
    "LogError",
    "Message",
    "MessageBus",
    "MessagePriority",
    "MessageType",
    "NameTaken",
    "NoAgent",
    "NoReply",
    "NotReached",
    "PositionLost",
    "Receipt",
    "RedisLost",
    "RedisRefused",
    "Redriven",
    "Rejected",
    "RequestFailed",
    "Settings",
    "Stats",
    "Subscription",
    "__version__",
    "events",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "events":
        return import_module("lemegeton.events")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lemegeton' has no attribute {name!r}")
    value = getattr(import_module(f"lemegeton.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
