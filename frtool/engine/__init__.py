"""The engine: one model, one KV pool, one continuously refilled decode batch."""

from .engine import Engine
from .options import EngineOptions

__all__ = ["Engine", "EngineOptions"]
