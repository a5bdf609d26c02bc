"""Models that a tree of branches cannot hold are refused by name, and before their weights are read."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

from frtool.errors import ModelError
from frtool.models import hook, selfcheck, support
from frtool.models.load import load_model

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 16, "num_attention_heads": 4}
REFUSED = {
    "qwen3_next": ({}, "linear_attention"),
    "jamba": ({}, "state"),
    "falcon_h1": ({}, "state"),
    "mamba": ({}, "state"),
    "bloom": ({}, "AttentionInterface"),
    "gptj": ({}, "AttentionInterface"),
    "bert": ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
    "roberta": ({}, "later tokens"),
    "t5": ({}, "encoder-decoder"),
    "vit": ({}, "no causal language model"),
    "deepseek_v3": ({}, "MLA"),
    "llama4_text": ({}, "chunked_attention"),
    "gemma3n_text": ({}, "shares keys and values"),
    "gemma4_text": ({}, "key-value heads"),
    "diffllama": ({}, "plain attention"),
    "doge": ({}, "attention_mask"),
    "stablelm": ({}, "keyword arguments"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_from_the_configuration_alone(kind, tmp_path):
    settings, why = REFUSED[kind]
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    transformers.AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be searched") as caught:
        load_model(str(tmp_path))
    assert kind in caught.value.message or settings
    assert why in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt_oss", "mixtral", "cohere2", "olmo2", "granite"])
def test_the_dry_run_lets_ordinary_models_pass(kind):
    from frtool.models.probe import check_attention

    config = transformers.AutoConfig.for_model(kind, **SMALL, num_key_value_heads=2, head_dim=8)
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert check_attention(model_class, config, kind) == (2, 8)


def test_the_dry_run_sees_what_the_configuration_does_not_say():
    from frtool.models.probe import check_attention

    config = transformers.AutoConfig.for_model("gpt_bigcode", n_layer=2, n_embd=32, n_head=4, multi_query=True)
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert check_attention(model_class, config, "gpt_bigcode") == (1, 8)


def random_model(kind: str, **settings):
    """What `load_model` hands to the self-check, without files."""
    from frtool.models.load import LoadedModel

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **SMALL, num_key_value_heads=2, intermediate_size=48, initializer_range=0.3, **settings
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=hook.ATTENTION_NAME).eval()
    return LoadedModel(
        model=model,
        tokenizer=range(16),
        name=kind,
        source="",
        dtype=torch.float32,
        device=torch.device("cpu"),
        parameters=0,
        vocab_size=16,
        max_positions=128,
        position_note=None,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        eos_ids=frozenset(),
        reward_tokens=None,
        chat_template=False,
        is_embedded=False,
    )


@pytest.mark.parametrize("kind", ["granite", "olmo2", "cohere2", "mixtral"])
def test_the_self_check_passes_models_that_no_test_knows(kind):
    selfcheck.check_model(random_model(kind))


def test_a_model_that_no_test_knows_loads_from_its_directory(tmp_path):
    loaded = random_model("olmo2")
    loaded.model.save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({str(index): index for index in range(16)}, unk_token="0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0").save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu", dtype="fp32")
    assert (again.num_kv_heads, again.head_dim) == (2, 8)


def test_the_self_check_refuses_a_model_that_computes_something_else(monkeypatch):
    loaded = random_model("granite")

    def deaf(module, query, key, value, mask, scaling=None, **kwargs):
        return hook.tree_attention_forward(module, query, key, value, mask, scaling=0.05, **kwargs)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, hook.ATTENTION_NAME, deaf)
    with pytest.raises(ModelError, match="granite computes something else over a tree"):
        selfcheck.check_model(loaded)


def test_the_self_check_refuses_positions_that_depend_on_the_batch(monkeypatch):
    loaded = random_model("granite")
    rotary = loaded.model.model.rotary_emb
    original = rotary.forward
    monkeypatch.setattr(
        rotary, "forward", lambda x, position_ids: original(x, torch.arange(position_ids.shape[1])[None])
    )
    with pytest.raises(ModelError, match="granite"):
        selfcheck.check_model(loaded)


def test_the_self_check_reports_a_model_that_fails(monkeypatch):
    loaded = random_model("granite")
    monkeypatch.setattr(loaded, "head_dim", 16)
    with pytest.raises(ModelError, match="failed a trial run"):
        selfcheck.check_model(loaded)


def test_the_self_check_leaves_the_tree_attention_in_place():
    loaded = random_model("granite")
    selfcheck.check_model(loaded)
    assert loaded.model.config._attn_implementation == hook.ATTENTION_NAME


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}


def test_positions_end_where_longrope_would_switch():
    config = transformers.Phi3Config(
        **SMALL,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_parameters=LONGROPE | {"original_max_position_embeddings": 32},
        pad_token_id=0,
    )
    limit, note = support.position_limit(config)
    assert limit == 32
    assert "longrope" in note


def test_longrope_below_its_switch_computes_what_a_path_alone_computes():
    config = transformers.Phi3Config(
        **SMALL,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_parameters=LONGROPE | {"original_max_position_embeddings": 32},
        pad_token_id=0,
    )
    loaded = random_model("granite")
    loaded.model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=hook.ATTENTION_NAME).eval()
    selfcheck.check_model(loaded)


def test_dynamic_rotary_embeddings_grow_from_the_advertised_length():
    config = transformers.LlamaConfig(
        **SMALL,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    assert support.position_limit(config) == (64, None)


@pytest.mark.parametrize("rope", ["default", "linear", "yarn", "llama3"])
def test_fixed_rotary_embeddings_keep_all_positions(rope):
    parameters = {
        "rope_type": rope,
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    config = transformers.LlamaConfig(**SMALL, max_position_embeddings=64, rope_parameters=copy.deepcopy(parameters))
    assert support.position_limit(config) == (64, None)


def test_rotary_embeddings_by_layer_type_are_looked_into():
    config = transformers.Gemma3TextConfig(
        **SMALL,
        max_position_embeddings=128,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert support.position_limit(config) == (128, None)
    config.rope_parameters["full_attention"] |= {"rope_type": "longrope", "original_max_position_embeddings": 16}
    assert support.position_limit(config)[0] == 16
