"""The engine: one model, one KV pool, one continuously refilled decode batch."""

from .engine import Engine
from .forest import Forest
from .options import EngineOptions
from .root import Root

__all__ = ["Engine", "EngineOptions", "Forest", "Root"]
