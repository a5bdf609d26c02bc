"""The keywords of a search from Python, and what they say as a configuration and a caller's objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypedDict, cast, get_args, get_type_hints

from frtool.config import SearchConfig
from frtool.errors import UsageError
from frtool.models import EMBEDDED
from frtool.search.budget import Budget
from frtool.search.protocols import Algorithm, Scorer, Task, Verifier

from .custom import Custom

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


class Settings(TypedDict, total=False):
    """Keywords of `frtool.search`, `frtool.stream` and `frtool.search_many`, all of them optional."""

    model: str | LoadedModel
    """"embedded", a directory, a GGUF file, a Hugging Face id, or what `frtool.load_model` gave."""
    algorithm: str | Algorithm | Callable[[], Algorithm]
    """A name, or an algorithm of your own: an object, a class, or a function that makes one."""
    options: dict[str, Any]
    """Those of a named algorithm."""
    budget: Budget
    scorer: str | Scorer
    verifier: str | Verifier
    task: Task
    """Where in your model's text the answer stands, and which steps are the same."""
    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_step_tokens: int
    max_depth: int
    delimiter: str
    system: str
    reward_model: str
    reward_preset: str
    verify_command: str
    verify_seconds: float
    expected: str
    steer: bool
    batch: int
    device: str
    dtype: str
    kv_memory: int
    block_size: int
    swap_space: int
    compile: bool
    offline: bool
    trust_remote_code: bool


def read_settings(prompt: str, settings: Settings) -> tuple[SearchConfig, Custom, LoadedModel | None]:
    """The configuration, the caller's own objects, and the model where it is loaded already. Raises UsageError."""
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in Settings.__annotations__:
            close = get_close_matches(name, Settings.__annotations__, 1)
            raise UsageError(f"a search has no setting `{name}`", hint=f"did you mean `{close[0]}`?" if close else None)
    model = given.pop("model", EMBEDDED)
    algorithm = given.pop("algorithm", "beam")
    scorer, verifier = given.pop("scorer", "auto"), given.pop("verifier", "auto")
    budget, task = given.pop("budget", Budget()), given.pop("task", None)
    options = given.pop("options", {})
    for what, value, allowed in (("budget", budget, Budget), ("options", options, dict), ("prompt", prompt, str)):
        if not isinstance(value, allowed):
            raise UsageError(f"{what} is of type {type(value).__name__}, but must be a {allowed.__name__}")
    for what, value, methods in (
        ("scorer", scorer, ("name", "score")),
        ("verifier", verifier, ("name", "verify")),
        ("task", task, ("answer", "key")),
    ):
        if not (value is None or isinstance(value, str)) and not all(hasattr(value, name) for name in methods):
            raise UsageError(f"{what} is of type {type(value).__name__}, without {' and '.join(methods)}")
    custom = Custom(
        algorithm=None if isinstance(algorithm, str) else _factory(algorithm),
        scorer=None if isinstance(scorer, str) else scorer,
        verifier=None if isinstance(verifier, str) else verifier,
        task=task,
    )
    _check_types(given)
    config = SearchConfig(
        prompt=prompt,
        model=model if isinstance(model, str) else model.name,
        algorithm=algorithm if isinstance(algorithm, str) else "beam",
        algorithm_options=dict(options),
        scorer=scorer if isinstance(scorer, str) else "auto",
        verify=verifier if isinstance(verifier, str) else "auto",
        **{item.name: getattr(budget, item.name) for item in fields(Budget)},
        **given,
    )
    return config, custom, None if isinstance(model, str) else model


def _factory(algorithm: Any) -> Callable[[], Algorithm]:
    if not isinstance(algorithm, type) and hasattr(algorithm, "ask"):
        return lambda: algorithm
    if not callable(algorithm):
        raise UsageError(f"algorithm is of type {type(algorithm).__name__}, without `ask`, and makes none that has it")
    return cast(Callable[[], Algorithm], algorithm)


def _check_types(given: dict[str, Any]) -> None:
    hints = get_type_hints(SearchConfig)
    for name, value in given.items():
        allowed = get_args(hints[name]) or (hints[name],)
        fits = type(value) in allowed or (type(value) is int and float in allowed)
        if not fits:
            wanted = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
            raise UsageError(f"{name} is of type {type(value).__name__}, but must be {wanted}")
