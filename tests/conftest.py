"""Shared test settings."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A busy machine is no fault of a test: none is judged by a clock.
settings.register_profile("frtool", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("frtool")
# Typer and Rich style their output by the caller's environment; tests read plain text.
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ.setdefault("COLUMNS", "100")
for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
    os.environ.pop(name, None)
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Nor do they take the caller's own defaults.
KEPT = ("FRTOOL_PHOTOGRAPHS", "FRTOOL_SNAPSHOTS")
for name in [name for name in os.environ if name.startswith("FRTOOL_") and name not in KEPT]:
    os.environ.pop(name)
os.environ["FRTOOL_CONFIG"] = os.devnull
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell lets what it starts in the background ignore Ctrl-C, and that would be handed on; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
