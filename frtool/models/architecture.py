"""From a model's configuration to the transformers class that runs it, before any weight is read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frtool.errors import ModelError

from .support import check_class, refuse
from .text import one_line


def load_config(name: str, raw: dict[str, Any], directory: Path, trust_remote_code: bool) -> Any:
    """The transformers configuration of a model directory whose `config.json` is `raw`. Raises ModelError."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = raw["model_type"]
    if kind not in CONFIG_MAPPING and not trust_remote_code:
        brings_code = bool(raw.get("auto_map"))
        raise ModelError(
            f"{name} has the architecture {one_line(kind, 40)!r}, which transformers does not know",
            hint="its repository brings its own code: --trust-remote-code runs it, if you trust it"
            if brings_code
            else "a newer transformers may know it",
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise ModelError(f"the config.json of {name} does not work: {one_line(error)}") from None


def model_class_of(config: Any, name: str, trust_remote_code: bool) -> Any:
    """The class that runs this configuration. Raises ModelError where there is none, or where it cannot be searched."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        if trust_remote_code and getattr(config, "auto_map", None):
            return AutoModelForCausalLM
        kind = one_line(config.model_type, 40)
        raise refuse(name, f"{kind} is no causal language model") from None
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    check_class(model_class, config, name)
    return model_class


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars, log lines and warnings off the terminal while a model loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
