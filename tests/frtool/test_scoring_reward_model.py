"""Reward models against their families' published recipes: plain full passes, written here on their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.config import SearchConfig
from frtool.errors import FrtoolError, ModelError, UsageError
from frtool.models.reward import load_reward_model
from frtool.scoring.preset import RewardPreset, find_preset, parse_preset
from frtool.scoring.reward_model import RewardModelScorer
from frtool.scoring.reward_pool import RewardPool
from frtool.scoring.self_eval import QUESTION as SELF_QUESTION
from frtool.scoring.self_eval import SelfEvalScorer
from frtool.search.events import Ended, NodeAdded
from frtool.search.protocols import OutOfMemory, Step
from frtool.search.tree import Node, SearchTree
from frtool.session import Session

QUESTION = "What is 3 + 4 * 2?"
LAYERS = [
    ["First, 4 * 2 = 8.\n\n", "It is + 14 -\n\n", "4 * 2 is\nnine ки or 8\n\n"],
    ["So 3 + 8 = 11.\n\n", "Thus <|eot|> + 12\n\n"],
    ["The answer is \\boxed{11}", "I do not know"],
]
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TURNS = "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n\n{{ m['content'] }}<|eot|>{% endfor %}"
CORPUS = [QUESTION, *(step for layer in LAYERS for step in layer), " ки \n\n\n\n\n + - user assistant system"] * 20


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def byte_tokenizer(template: str | None = None) -> Any:
    """Byte-level BPE without a start token of its own, like that of Qwen and Llama 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<|start|>", "<|eot|>", "<extra_0>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", chat_template=template
    )


def word_tokenizer() -> Any:
    """Pieces that begin with a mark for their space, behind a start token, like that of Llama and Mistral."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )


HIDDEN = 48


def save_model(folder: Path, tokenizer: Any, heads: dict[str, list[int]], kind: str = "qwen2", seed: int = 0) -> str:
    """A tiny random model with tensors for a head, declared as the class that its own code would be."""
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.25,
        "tie_word_embeddings": False, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    is_qwen = kind == "qwen2"
    model = Qwen2ForCausalLM(Qwen2Config(**settings)) if is_qwen else LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if heads:
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        weights |= {name: torch.randn(shape) * 0.4 for name, shape in heads.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = ["Qwen2ForProcessRewardModel"]
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


class Plain:
    """The saved model in ordinary transformers, with its head's tensors."""

    def __init__(self, folder: str) -> None:
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM

        config = json.loads((Path(folder) / "config.json").read_text())
        model_class = Qwen2ForCausalLM if config["model_type"] == "qwen2" else LlamaForCausalLM
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
        self.tensors = load_file(Path(folder) / "model.safetensors")

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids]), use_cache=False).logits[0].double()

    @torch.no_grad()
    def hidden(self, ids: list[int]) -> torch.Tensor:
        return self.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].double()


def stripped(steps: list[str], tag: str = "") -> list[str]:
    """Steps as a recipe's caller passes them: without the blank line between them, and without the tag inside."""
    return [step.strip().replace(tag, "") if tag else step.strip() for step in steps]


def math_shepherd(plain: Plain, question: str, steps: list[str]) -> float:
    tokenizer = plain.tokenizer
    candidates = tokenizer.encode("+ -")[1:]
    tag_id = tokenizer.encode("ки")[-1]
    output = "".join(f"{step} ки\n\n" for step in stripped(steps, "ки"))
    ids = tokenizer.encode(f"{question} {output}")
    scores = plain.logits(ids)[:, candidates].softmax(-1)[:, 0]
    found = scores[torch.tensor(ids) == tag_id]
    assert len(found) == len(steps)
    return float(found[-1])


def rlhflow(plain: Plain, question: str, steps: list[str]) -> float:
    tokenizer = plain.tokenizer
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    conversation: list[dict[str, str]] = []
    score = 0.0
    for index, step in enumerate(stripped(steps)):
        text = question + " " + step if index == 0 else step
        conversation += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        score = float(plain.logits(ids)[-3, candidates].softmax(-1)[0])
    return score


def skywork(plain: Plain, question: str, steps: list[str]) -> float:
    tokenizer = plain.tokenizer
    ids = tokenizer.encode(tokenizer.bos_token + question + "\n")
    newline = tokenizer.encode("\n")[-1]
    flags = [0] * len(ids)
    for line in "\n".join(stripped(steps)).split("\n"):
        line_ids = [*(tokenizer.encode(line) if line else []), newline]
        ids += line_ids
        flags += [0] * (len(line_ids) - 1) + [1]
    weight, bias = plain.tensors["v_head.summary.weight"].double(), plain.tensors["v_head.summary.bias"].double()
    values = torch.sigmoid(plain.hidden(ids) @ weight.T + bias)[:, 0]
    return float(values[torch.tensor(flags) == 1][-1])


def qwen_prm(plain: Plain, question: str, steps: list[str]) -> float:
    tokenizer = plain.tokenizer
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "<extra_0>".join(stripped(steps)) + "<extra_0>"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = tokenizer.encode(text)
    hidden, tensors = plain.hidden(ids), {name: tensor.double() for name, tensor in plain.tensors.items()}
    inner = torch.relu(hidden @ tensors["score.0.weight"].T + tensors["score.0.bias"])
    classes = (inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]).softmax(-1)
    found = classes[torch.tensor(ids) == tokenizer.encode("<extra_0>")[0]][:, 1]
    assert len(found) == len(steps)
    return float(found[-1])


def rstar(plain: Plain, question: str, steps: list[str]) -> float:
    wrapped = f"<|user|>:\n{question}\n<|assistant|>: Let's think step by step and solve the problem with code."
    ids = plain.tokenizer.encode(wrapped + "\n".join(stripped(steps)))
    value = plain.hidden(ids)[-1] @ plain.tensors["v_head.weight"].double()[0]
    return float((torch.tanh(value / 5) + 1) / 2)


def math_psa(plain: Plain, question: str, steps: list[str]) -> float:
    tokenizer = plain.tokenizer
    candidates = tokenizer.encode(" + -")
    (tag_id,) = tokenizer.encode(" \n\n\n\n\n")
    ids = tokenizer.encode(question + " " + " ".join(f"{step} \n\n\n\n\n" for step in stripped(steps)))
    scores = plain.logits(ids)[:, candidates].softmax(-1)[:, 0]
    found = scores[torch.tensor(ids) == tag_id]
    assert len(found) == len(steps)
    return float(found[-1])


Recipe = Callable[[Plain, str, list[str]], float]
VALUE = {"v_head.summary.weight": [1, HIDDEN], "v_head.summary.bias": [1]}
TWO = {
    "score.0.weight": [HIDDEN, HIDDEN], "score.0.bias": [HIDDEN], "score.2.weight": [2, HIDDEN], "score.2.bias": [2]
}  # fmt: skip
FAMILIES: dict[str, tuple[Recipe, Callable[[], Any], dict[str, list[int]], str]] = {
    "math-shepherd": (math_shepherd, word_tokenizer, {}, "llama"),
    "rlhflow-deepseek": (rlhflow, lambda: byte_tokenizer(TURNS), {}, "llama"),
    "rlhflow-mistral": (rlhflow, lambda: byte_tokenizer(TURNS), {}, "llama"),
    "skywork-o1": (skywork, byte_tokenizer, VALUE, "qwen2"),
    "qwen2.5-math-prm": (qwen_prm, lambda: byte_tokenizer(CHAT), TWO, "qwen2"),
    "rstar": (rstar, byte_tokenizer, {"v_head.weight": [1, HIDDEN]}, "qwen2"),
    "math-psa": (math_psa, byte_tokenizer, {}, "qwen2"),
}
CLASSES = {"lm": 0, "value": 1, "2class": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            _, tokenizer, heads, kind = FAMILIES[family]
            made[family] = save_model(tmp_path_factory.mktemp(family), tokenizer(), heads, kind)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def loaded_for(folders: Callable[[str], str]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in made:
            preset = find_preset(family, "")
            made[family] = load_reward_model(
                folders(family), head_tensors=preset.head_tensors, classes=CLASSES[preset.head], dtype="fp32"
            )
        return made[family]

    return load


class Grown:
    """A tree whose nodes are scored level by level, as a search would."""

    def __init__(self, scorer: RewardModelScorer, layers: list[list[str]] = LAYERS, ends: bool = False) -> None:
        self.tree, self.scorer = SearchTree(), scorer
        self.nodes: list[Node] = []
        self.level = [self.tree.root]
        for depth, texts in enumerate(layers):
            self.grow(texts, last=ends and depth == len(layers) - 1)

    def grow(self, texts: list[str], *, last: bool = False) -> None:
        """One more level: a child of each text below every node of the last."""
        fresh = [self.make(parent, text, last=last) for parent in self.level for text in texts]
        self.score(fresh)
        self.level = [node for _, node in fresh]

    def make(self, parent: Node, text: str, *, last: bool = False) -> tuple[Step, Node]:
        expand = self.tree.want(parent)
        step = Step(parent.id, expand.ordinal, text, 5, -1.0, "end" if last else "step")
        node, _ = self.tree.make(step)
        node.terminal = "end" if last else None
        return step, node

    def score(self, fresh: list[tuple[Step, Node]]) -> None:
        values = self.scorer.score([node for _, node in fresh], [step for step, _ in fresh], self.tree)
        for (_, node), value in zip(fresh, values, strict=True):
            node.reward = value
            self.tree.attach(node)
            self.nodes.append(node)
        self.scorer.allocator.check()

    def values(self) -> dict[str, float]:
        return {node.id: node.reward for node in self.nodes if node.reward is not None}


def texts(node: Node) -> list[str]:
    return [at.text for at in node.path()[1:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_worth_what_the_published_recipe_says(
    family: str, folders: Callable[[str], str], loaded_for: Callable[[str], Any]
) -> None:
    recipe = FAMILIES[family][0]
    scorer = RewardModelScorer(loaded_for(family), find_preset(family, ""), QUESTION, num_blocks=512, block_size=4)
    grown = Grown(scorer, ends=True)
    plain = Plain(folders(family))
    expected = {node.id: recipe(plain, QUESTION, texts(node)) for node in grown.nodes}
    assert grown.values() == pytest.approx(expected, abs=2e-5)
    assert max(expected.values()) - min(expected.values()) > 0.05
    assert scorer.tokens < 0.6 * sum(len(scorer._layout.ids(texts(node))) for node in grown.nodes)


def test_a_pool_that_holds_almost_nothing_gives_the_same_values(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("qwen2.5-math-prm", "")
    roomy = RewardModelScorer(loaded_for(preset.name), preset, QUESTION, num_blocks=512, block_size=4)
    longest = max(len(roomy._layout.ids(texts(node))) for node in Grown(roomy).nodes)
    tight = RewardModelScorer(loaded_for(preset.name), preset, QUESTION, num_blocks=longest // 4 + 2, block_size=4)
    assert Grown(tight).values() == pytest.approx(Grown(roomy).values(), abs=1e-6)
    assert tight.tokens > roomy.tokens / 2
    tight.clear()
    assert tight.allocator.free_blocks == tight.allocator.num_blocks


def test_scorers_of_several_questions_share_a_pool_and_its_lack_of_room(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("qwen2.5-math-prm", "")
    loaded = loaded_for(preset.name)
    questions = [QUESTION, "How much is 2 + 2?", "What is left of 9 after 3 and 4 are gone?"]
    alone = [Grown(RewardModelScorer(loaded, preset, text, num_blocks=512, block_size=4)) for text in questions]
    longest = max(len(grown.scorer._layout.ids(texts(node))) for grown in alone for node in grown.nodes)
    pool = RewardPool(loaded, num_blocks=longest // 4 + 2, block_size=4)
    together = [RewardModelScorer(loaded, preset, text, pool=pool) for text in questions]
    grown = [Grown(scorer, []) for scorer in together]
    for layer in LAYERS:  # in turn, so that each takes the others' blocks
        for tree in grown:
            tree.grow(layer)
    assert [tree.values() for tree in grown] == [pytest.approx(tree.values(), abs=1e-6) for tree in alone]
    for scorer in together:
        scorer.clear()
    assert pool.holders == []
    assert pool.allocator.free_blocks == pool.allocator.num_blocks
    pool.allocator.check()


def test_a_search_that_goes_on_pays_only_for_what_is_new(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("qwen2.5-math-prm", "")
    first = RewardModelScorer(loaded_for(preset.name), preset, QUESTION, num_blocks=512, block_size=4)
    grown = Grown(first)
    parents = [node for node in grown.nodes if node.children]
    last = [node for node in grown.nodes if not node.children]
    spent: list[int] = []
    again = RewardModelScorer(
        loaded_for(preset.name), preset, QUESTION, spend=spent.append, num_blocks=512, block_size=4
    )
    again.warm([node for node in parents if node in {child.parent for child in last}], grown.tree)
    assert not spent
    values = again.score(last, [], grown.tree)
    assert values == [node.reward for node in last]
    layouts = [len(first._layout.ids(texts(node))) for node in last]
    assert 0 < sum(spent) == again.tokens < sum(layouts) / 2


def test_a_path_that_no_pool_holds_ends_the_search_for_memory(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("math-psa", "")
    scorer = RewardModelScorer(loaded_for(preset.name), preset, QUESTION, num_blocks=8, block_size=4)
    with pytest.raises(OutOfMemory, match="more KV blocks"):
        Grown(scorer, [["1 + 1 = 2, " * 20]])
    scorer.allocator.check()
    scorer.clear()
    assert scorer.allocator.free_blocks == 8


def test_branches_leave_with_their_nodes(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("math-psa", "")
    scorer = RewardModelScorer(loaded_for(preset.name), preset, QUESTION, num_blocks=512, block_size=4)
    grown = Grown(scorer, [["a + b\n\n", "c + d\n\n", "e\n\n"]])
    first, second, third = grown.nodes
    assert set(scorer._held) == {first, second, third}
    grown.tree.leave(first, "expanded")
    grown.tree.leave(second, "pruned", "beam")
    grown.score([grown.make(third, "f = 1\n\n"), grown.make(third, "g", last=True)])
    assert set(scorer._held) == {third, grown.nodes[3]}
    assert len(scorer.allocator.branch_ids) == 3  # and the question
    scorer.clear()
    assert scorer.allocator.free_blocks == 512
    grown.score([grown.make(third, "h\n\n")])  # it goes on after that
    assert 0 < (grown.nodes[-1].reward or 0) < 1


def test_only_the_new_step_is_read(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("skywork-o1", "")
    spent: list[int] = []
    scorer = RewardModelScorer(
        loaded_for(preset.name), preset, QUESTION, spend=spent.append, num_blocks=512, block_size=4
    )
    grown = Grown(scorer, [["4 * 2 = 8\n\n"]])
    ids = scorer._layout.ids(texts(grown.nodes[0]))
    assert spent == [len(scorer._layout.root), len(ids) - len(scorer._layout.root)]
    grown.score([grown.make(grown.nodes[0], text) for text in ("3 + 8 = 11\n\n", "so 12\n\n")])
    new = sum(len(scorer._layout.ids(texts(node))) - len(ids) for node in grown.nodes[1:])
    assert spent[2:] == [new]
    assert scorer.tokens == sum(spent)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_values_depend_on_the_path_alone(data: st.DataObject, loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset(data.draw(st.sampled_from(["rlhflow-deepseek", "math-psa"])), "")
    loaded = loaded_for(preset.name)
    step = st.text(st.sampled_from("12+- \n\u043a\u0438\u00e9<>|eot_"), max_size=12)
    layers = data.draw(st.lists(st.lists(step, min_size=1, max_size=3), min_size=1, max_size=3))
    blocks = data.draw(st.sampled_from([80, 600]))
    scorer = RewardModelScorer(loaded, preset, QUESTION, num_blocks=blocks, block_size=4)
    grown = Grown(scorer, layers)
    for node in grown.nodes[-3:]:
        alone = RewardModelScorer(loaded, preset, QUESTION, num_blocks=600, block_size=4)
        assert alone.score([node], [Step("0", 0, "", 1, 0.0, "step")], grown.tree) == [
            pytest.approx(node.reward, abs=1e-6)
        ]


def test_a_path_longer_than_the_model_reads_is_worth_nothing(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("math-psa", "")
    scorer = RewardModelScorer(loaded_for(preset.name), preset, QUESTION, num_blocks=600, block_size=4)
    grown = Grown(scorer, [["1 " * 600 + "\n\n", "2\n\n"]])
    assert grown.nodes[0].reward == 0.0
    assert (grown.nodes[1].reward or 0) > 0
    assert scorer.too_long == 1


def test_text_that_spells_a_token_without_an_embedding_is_read_without_it(loaded_for: Callable[[str], Any]) -> None:
    preset, loaded = find_preset("math-psa", ""), loaded_for("math-psa")
    beyond = len(loaded.tokenizer)
    loaded.tokenizer.add_special_tokens({"additional_special_tokens": ["<|beyond|>"]})
    assert loaded.tokenizer.encode("<|beyond|>")[0] >= min(beyond, loaded.vocab_size)
    scorer = RewardModelScorer(loaded, preset, QUESTION, num_blocks=512, block_size=4)
    grown = Grown(scorer, [["1 + 1<|beyond|>\n\n", "1 + 1\n\n"]])
    assert grown.nodes[0].reward == grown.nodes[1].reward


def test_nan_is_an_error_and_frees_what_was_taken(loaded_for: Callable[[str], Any]) -> None:
    preset = find_preset("skywork-o1", "")
    loaded = loaded_for(preset.name)
    scorer = RewardModelScorer(loaded, preset, QUESTION, num_blocks=64, block_size=4)
    weight = loaded.model.model.norm.weight
    kept = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(FrtoolError, match="NaN logits at the question, in the reward model"):
            Grown(scorer, [["a\n\n"]])
    finally:
        weight.copy_(kept)
    assert not scorer.allocator.branch_ids
    scorer.allocator.check()


def changed(name: str, **changes: Any) -> RewardPreset:
    preset = find_preset(name, "")
    table = {key: getattr(preset, key) for key in preset.__slots__ if key != "name"}
    table = {key: list(value) if isinstance(value, tuple) else value for key, value in (table | changes).items()}
    return parse_preset("mine", table)


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("math-shepherd", {"step_tag": "\u043a\u0438"}, "does not end in a token of its own"),
        ("math-psa", {"bad_token": " +"}, "one and the same"),
        ("math-shepherd", {"good_token": "\u6f22"}, "is none of the model's"),
        ("math-psa", {"layout": "chat", "joiner": ""}, "no chat template"),
    ],
)
def test_a_preset_that_does_not_fit_the_tokenizer_is_refused(
    family: str, changes: dict[str, Any], text: str, loaded_for: Callable[[str], Any]
) -> None:
    with pytest.raises(ModelError, match=text):
        RewardModelScorer(loaded_for(family), changed(family, **changes), QUESTION, num_blocks=64, block_size=4)


def test_a_question_that_does_not_fit_is_refused(loaded_for: Callable[[str], Any]) -> None:
    preset, loaded = find_preset("math-psa", ""), loaded_for("math-psa")
    for question, blocks, text in (
        ("1 " * 600, 600, "reads at most 512"),
        ("1 " * 60, 8, "too small"),
        (" ", 8, "empty"),
    ):
        with pytest.raises(UsageError, match=text):
            RewardModelScorer(loaded, preset, question, num_blocks=blocks, block_size=4)


@pytest.mark.parametrize(
    ("tensors", "classes", "text"),
    [
        ("score", 1, "score is not among its weights"),
        ("v_head.summary", 2, "gives 1 values; the preset wants 2"),
        ("model.norm", 1, r"weight is \[48\], not"),
        ("model.layers.0.self_attn.k_proj", 1, "gives 24 values"),
    ],
)
def test_a_head_that_is_not_there_or_has_another_shape_is_refused(
    tensors: str, classes: int, text: str, folders: Callable[[str], str]
) -> None:
    with pytest.raises(ModelError, match=text):
        load_reward_model(folders("skywork-o1"), head_tensors=tensors, classes=classes, dtype="fp32")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy"), byte_tokenizer(CHAT), {}, seed=7)


def config_of(policy: str, reward: str | None, **changes: Any) -> SearchConfig:
    settings = {"algorithm": "beam", "delimiter": "e", "max_step_tokens": 8, "max_depth": 4, "steps": 24, "batch": 4}
    return SearchConfig(prompt=QUESTION, model=policy, reward_model=reward, dtype="float32", **(settings | changes))


def test_a_search_is_led_by_the_reward_model(policy: str, folders: Callable[[str], str]) -> None:
    folder = folders("qwen2.5-math-prm")
    session = Session.open(config_of(policy, folder, reward_preset="qwen2.5-math-prm"))
    events = list(session.run())
    scorer, ended = session.scorer, events[-1]
    assert isinstance(scorer, RewardModelScorer)
    assert isinstance(ended, Ended)
    assert ended.reason in ("steps", "finished", "exhausted")
    assert ended.scorer_tokens == scorer.tokens > 0
    record = json.loads(json.dumps(session.model_record()))
    assert record["scorer"] == "prm:qwen2.5-math-prm"
    assert record["preset"]["step_tag"] == "<extra_0>"
    plain = Plain(folder)
    steps: dict[str, list[str]] = {"0": []}
    added = [event for event in events if isinstance(event, NodeAdded)]
    assert len(added) > 8
    for event in added:
        steps[event.id] = [*steps[event.id.rpartition(".")[0]], event.text]
        assert event.reward is not None
        if all(step.strip() for step in steps[event.id]):
            assert event.reward == pytest.approx(qwen_prm(plain, QUESTION, steps[event.id]), abs=2e-5)
    scorer.allocator.check()


def test_tokens_of_the_reward_model_count_against_the_budget(policy: str, folders: Callable[[str], str]) -> None:
    folder = folders("qwen2.5-math-prm")
    session = Session.open(config_of(policy, folder, reward_preset="qwen2.5-math-prm", steps=None, tokens=150))
    ended = list(session.run())[-1]
    assert isinstance(ended, Ended)
    assert ended.reason == "tokens"
    assert ended.policy_tokens < 120


def test_the_verdict_of_a_command_can_be_the_score(policy: str) -> None:
    config = SearchConfig(
        prompt=QUESTION, model=policy, dtype="float32", algorithm="best-of-n", algorithm_options={"n": 4}, steps=8,
        delimiter="e", max_step_tokens=6, max_depth=2, scorer="command", verify_command="sh -c 'echo 0.25; exit 1'",
    )  # fmt: skip
    events = list(Session.open(config).run())
    ended = [event for event in events if isinstance(event, NodeAdded) and event.terminal and not event.duplicate_of]
    assert ended
    assert {(event.reward, event.verified) for event in ended} == {(0.25, False)}


def test_a_chat_model_judges_itself_in_a_turn_of_the_user(policy: str) -> None:
    session = Session.open(config_of(policy, None, scorer="self-eval", steps=16))
    events = list(session.run())
    scorer, ended = session.scorer, events[-1]
    assert isinstance(scorer, SelfEvalScorer)
    assert isinstance(ended, Ended)
    question = "<|eot|>\n<|start|>user\n" + SELF_QUESTION + "<|eot|>\n<|start|>assistant\n"
    query = session.loaded.tokenizer(question, add_special_tokens=False)["input_ids"]
    assert scorer.query == query
    added = [event for event in events if isinstance(event, NodeAdded) and event.duplicate_of is None]
    assert all(event.reward is not None and 0 < event.reward < 1 for event in added)
    assert len(added) * len(query) <= ended.scorer_tokens <= len(added) * (len(query) + 1)
