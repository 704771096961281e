"""`tiller serve --engine vllm` through the OpenAI SDK: steered, streamed, constrained, and when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from server.cli.serve.command import BROKEN
from tests.reference import Steer, greedy
from tests.server.api.serving import HIDDEN, byte_tokenizer, direction
from tests.server.cli.running import ServerProcess
from vectors import save
from vectors.vector import SteeringVector

PROMPT = "Once upon a time"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A tiny Llama over bytes, and the folder that it lies in."""
    import torch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, initializer_range=0.25, bos_token_id=None,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("model") / "bytes"
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder, module


@pytest.fixture
def server(model: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> Iterator[ServerProcess]:
    flags = ["--engine", "vllm", "--dtype", "float32", "--kv-cache-gib", "0.05"]
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with ServerProcess(tmp_path, str(model[0]), *flags, environ=environ, patience=900) as server:
        yield server


def test_steered_streamed_and_constrained_answers_and_the_end_when_a_worker_dies(
    server: ServerProcess, model: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    url = server.wait_until_ready()
    file = tmp_path / "v.safetensors"
    save(SteeringVector({1: direction(1)}), file)
    httpx.put(f"{url}/v1/steering/vectors/v", content=file.read_bytes(), timeout=60).raise_for_status()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(PROMPT)
    for steering, steers in (([], ()), ([{"vector": "v"}], (Steer(direction(1), 1),))):
        wanted = tokenizer.decode(greedy(model[1], ids, NUM_TOKENS, steers)[0])
        chunks = client.completions.create(
            model="bytes", prompt=PROMPT, max_tokens=NUM_TOKENS, temperature=0, stream=True,
            extra_body={"steering": steering, "ignore_eos": True},
        )  # fmt: skip
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == wanted
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="bytes", messages=[{"role": "user", "content": "hi"}], max_tokens=60, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        extra_body={"steering": [{"vector": "v"}]},
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content or "") in ({"a": 1}, {"a": 2})
    assert httpx.get(f"{url}/ready", timeout=60).status_code == 200
    listed = subprocess.run(
        ["ps", "--ppid", str(server.process_id), "-o", "pid=,comm="], capture_output=True, encoding="utf-8", check=True
    )
    (worker,) = [line.split()[0] for line in listed.stdout.splitlines() if "VLLM" in line]
    os.kill(int(worker), signal.SIGKILL)
    assert server.wait() == BROKEN
    assert "a worker process of vLLM has died" in server.output
