"""Loading a causal language model with the tree attention in place, and everything about it that a search needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from frtool.errors import FrtoolError, ModelError, UsageError

from . import hub
from .architecture import load_config, model_class_of, quiet_transformers
from .checkpoint import read_config, require_tokenizer, summarize_weights
from .devices import INT4, choose_device, choose_dtype, set_threads, take_four_bits
from .four_bit import can_compute
from .gguf_header import GgufHeader, read_gguf_header
from .gguf_reading import parsed_once
from .memory import require_memory
from .packed import can_pack, pack_model
from .resolve import ModelSource, Progress, resolve_model
from .support import TESTED_TYPES, check_config, position_limit
from .text import one_line

# End of a turn in chat formats whose end token the generation config may not list.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
REWARD_TOKENS = ("<prm>", "<+>", "<->")


@dataclass(frozen=True, slots=True)
class RewardTokens:
    """Token ids of a process reward read from the model itself: appended `query`, then good against bad logit."""

    query: int
    good: int
    bad: int


@dataclass(slots=True)
class LoadedModel:
    """A model ready for the engine, in evaluation mode on one device.

    `max_positions`: longest branch in tokens; `position_note` says why when it is below what the model advertises.
    `vocab_size`: columns of the logits. `source`: path of the directory or file. `parameters`: number of weights.
    """

    model: Any
    tokenizer: Any
    name: str
    source: str
    dtype: torch.dtype
    device: torch.device
    parameters: int
    vocab_size: int
    max_positions: int
    position_note: str | None
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eos_ids: frozenset[int]
    reward_tokens: RewardTokens | None
    chat_template: bool
    is_embedded: bool
    four_bit: bool = False
    """Whether weights have four bits; `dtype` is that of all else."""

    @property
    def number_format(self) -> str:
        """Of the weights, as `--dtype` calls it."""
        return INT4 if self.four_bit else str(self.dtype).removeprefix("torch.")


def load_model(
    spec: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
    light: bool = False,
) -> LoadedModel:
    """Load "embedded", a safetensors directory, a GGUF file or a hub id (`owner/name`, `owner/name/file.gguf`).

    `on_progress` gets one short line for each stage, from other threads while files are fetched. Raises ModelError,
    with a hint, for everything that is missing, corrupt, unsupported or too large, before the weights are read wherever
    that can be known; UsageError for a device or number format that does not exist. `dtype` "int4": weights of four
    bits on a CPU, all else as without a wish. `light` allows an embedded model that runs passes over trees and nothing
    else, but needs no transformers, whose import takes seconds.
    """
    progress: Progress = on_progress or (lambda _: None)
    target = choose_device(device)
    source = resolve_model(spec)
    set_threads()
    four_bit, dtype = take_four_bits(dtype, target)
    if four_bit and source.kind == "embedded":
        raise UsageError(
            "the embedded model is not offered in int4: its accuracy was measured in float32 and bfloat16",
            hint="use --model, or another --dtype",
        )
    if light and source.kind == "embedded":
        chosen = choose_dtype(_wish(source, dtype, target), target, summarize_weights(source.path).parameters)
        if can_pack(target, chosen):
            from .light import load_light

            loaded = load_light(source, chosen, progress)
            set_threads(loaded.parameters)
            return loaded
    rounds = False
    with quiet_transformers():
        if source.kind == "hub" and source.file is not None:
            path = hub.fetch_gguf(source, offline=offline, on_progress=progress)
            source = ModelSource("gguf", source.name, path)
        if source.kind == "gguf":
            header = read_gguf_header(source.path)
            rounds = header.is_quantized
            with parsed_once():
                loaded = _load_gguf(source, header, target, dtype, progress)
        else:
            loaded = _load_directory(source, target, dtype, offline, trust_remote_code, progress)
    set_threads(loaded.parameters)
    return pack_weights(loaded, four_bit, rounds)


def _load_directory(
    source: ModelSource,
    device: torch.device,
    dtype: str | torch.dtype | None,
    offline: bool,
    trust_remote_code: bool,
    progress: Progress,
) -> LoadedModel:
    directory = source.path
    if source.kind == "hub":
        directory = hub.fetch_small_files(source, offline=offline, on_progress=progress)
    raw = read_config(directory)
    config = load_config(source.name, raw, directory, trust_remote_code)
    check_config(config, source.name)
    model_class = model_class_of(config, source.name, trust_remote_code)
    geometry = attention_geometry(model_class, config, source.name)
    require_tokenizer(directory)
    tokenizer = read_tokenizer(source, directory, trust_remote_code)
    if source.kind == "hub":
        directory = hub.fetch_weights(source, directory, device, offline=offline, on_progress=progress)
    weights = summarize_weights(directory)
    chosen = choose_dtype(_wish(source, dtype, device), device, weights.parameters)
    quantized = getattr(config, "quantization_config", None) is not None
    needed = weights.stored_bytes if quantized else weights.parameters * chosen.itemsize
    require_memory(source.name, needed, device)
    progress(f"loading {source.name} ({weights.stored_bytes / 1e6:,.0f} MB)")
    options = {"trust_remote_code": True} if trust_remote_code else {}
    model = read_weights(model_class, source.name, directory, device, config=config, dtype=chosen, **options)
    return finish_loading(source, str(directory), model, tokenizer, chosen, device, geometry)


def _wish(source: ModelSource, dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype | None:
    """The number format asked for. On a GPU the embedded model keeps that of its measured accuracy."""
    return "fp32" if dtype is None and source.kind == "embedded" and device.type == "cuda" else dtype


def _load_gguf(
    source: ModelSource,
    header: GgufHeader,
    device: torch.device,
    dtype: str | torch.dtype | None,
    progress: Progress,
) -> LoadedModel:
    from transformers import AutoConfig

    directory, file = source.path.parent, source.path.name
    chosen = choose_dtype(dtype, device, header.parameters)
    # transformers unpacks every block, so the file's size says nothing about the memory; it does so on the host.
    for place in {device, torch.device("cpu")}:
        require_memory(source.name, header.parameters * chosen.itemsize, place)
    progress(f"reading {source.name}")
    try:
        config = AutoConfig.from_pretrained(directory, gguf_file=file, local_files_only=True)
    except Exception as error:
        raise _gguf_failure(source, header, error) from None
    check_config(config, source.name)
    model_class = model_class_of(config, source.name, trust_remote_code=False)
    geometry = attention_geometry(model_class, config, source.name)
    tokenizer = read_tokenizer(source, directory, False, gguf_file=file)
    progress(f"unpacking {source.name} ({header.parameters / 1e6:,.0f} M parameters)")
    model = read_weights(model_class, source.name, directory, device, config=config, dtype=chosen, gguf_file=file)
    return finish_loading(source, str(source.path), model, tokenizer, chosen, device, geometry)


def attention_geometry(model_class: Any, config: Any, name: str) -> tuple[int, int]:
    """Key-value heads and head size, from a dry run where no test has held the architecture to its own attention."""
    text = config.get_text_config(decoder=True)
    if config.model_type not in TESTED_TYPES and hasattr(model_class, "_from_config"):
        from .probe import check_attention

        probed = check_attention(model_class, config, name)
        if probed is not None:
            return probed
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return kv_heads, int(getattr(text, "head_dim", None) or text.hidden_size // heads)


def read_tokenizer(source: ModelSource, directory: Path, trust_remote_code: bool, **options: Any) -> Any:
    """The tokenizer in `directory`. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code, local_files_only=True, **options
        )
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {source.name} cannot be read: {one_line(error)}", hint="download the model again"
        ) from None


def read_weights(model_class: Any, name: str, directory: Path, device: torch.device, **options: Any) -> Any:
    """The model with all its weights on `device`; nothing left at random values."""
    from .hook import ATTENTION_NAME

    if device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        model, info = model_class.from_pretrained(
            directory,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except FrtoolError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise ModelError(f"{name} does not fit into the memory of {device}", hint="use a smaller model") from None
    except Exception as error:
        raise ModelError(f"the weights of {name} cannot be loaded: {one_line(error)}") from None
    foreign = "the files do not belong together, or the download is incomplete"
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{name} lacks {len(missing)} of its weights: {one_line(', '.join(missing))}", hint=foreign)
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise ModelError(f"{name}: {one_line(key, 80)} is {list(found)}, not {list(expected)}", hint=foreign)
    return model.eval().requires_grad_(False)


def finish_loading(
    source: ModelSource,
    path: str,
    model: Any,
    tokenizer: Any,
    dtype: torch.dtype,
    device: torch.device,
    geometry: tuple[int, int],
) -> LoadedModel:
    """Everything about the model in one place, and a trial run where no test has tried its architecture."""
    text = model.config.get_text_config(decoder=True)
    limit, note = position_limit(model.config)
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=source.name,
        source=path,
        dtype=dtype,
        device=device,
        parameters=sum(weight.numel() for weight in model.parameters()),
        vocab_size=int(text.vocab_size),
        max_positions=limit,
        position_note=note,
        num_layers=int(text.num_hidden_layers),
        num_heads=int(text.num_attention_heads),
        num_kv_heads=geometry[0],
        head_dim=geometry[1],
        eos_ids=_end_tokens(model, tokenizer),
        reward_tokens=_reward_tokens(tokenizer),
        chat_template=bool(getattr(tokenizer, "chat_template", None)),
        is_embedded=source.kind == "embedded",
    )
    if model.config.model_type not in TESTED_TYPES:
        from .selfcheck import check_model

        check_model(loaded)
    return loaded


def pack_weights(loaded: LoadedModel, four_bit: bool = False, rounds: bool = False) -> LoadedModel:
    """The same model, its weights laid out for the products of a decode step where the device gains from it, or rounded
    to four bits, see `four_bit`. `rounds`: they come out of a quantized file, and lose nothing to speak of in fp16.
    Raises ModelError where torch cannot compute with four bits."""
    packable = can_pack(loaded.device, loaded.dtype)
    if four_bit and not (packable and can_compute(loaded.dtype)):
        raise ModelError(
            f"torch {torch.__version__} does not compute with four-bit weights here", hint="leave out --dtype int4"
        )
    if packable:
        pack_model(loaded.model, four_bit, rounds)
    return replace(loaded, four_bit=True) if four_bit else loaded


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: what the configurations and the tokenizer name, and the ends of chat turns."""
    ends: set[int] = set()
    text = model.config.get_text_config(decoder=True)
    for holder in (getattr(model, "generation_config", None), text, tokenizer):
        tokens = getattr(holder, "eos_token_id", None)
        ends.update([tokens] if isinstance(tokens, int) else tokens or [])
    special = _special_tokens(tokenizer)
    ends.update(special[name] for name in TURN_ENDS if name in special)
    # A tokenizer may know tokens that the model cannot write.
    return frozenset(int(token) for token in ends if int(token) < int(text.vocab_size))


def _reward_tokens(tokenizer: Any) -> RewardTokens | None:
    special = _special_tokens(tokenizer)
    if any(name not in special for name in REWARD_TOKENS):
        return None
    return RewardTokens(*(special[name] for name in REWARD_TOKENS))


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    return {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def _gguf_failure(source: ModelSource, header: GgufHeader, error: Exception) -> ModelError:
    if "not supported" in str(error) or "architecture" in str(error):
        return ModelError(
            f"{source.name} has the GGUF architecture {header.architecture!r}, which transformers cannot unpack",
            hint="use the model's safetensors directory",
        )
    return ModelError(f"the header of {source.path} does not work: {one_line(error)}", hint="download it again")
