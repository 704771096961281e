#!/usr/bin/env bash
# brainpatch 1.2.0: a patch exported for llama.cpp steers one block too late. A patch at layer L adds its vector to the output
# of the 0-based block L, as brainpatch's own transformers backend does. The export writes it as `direction.{L+1}`, since
# "layer indices are 1-based". llama.cpp (b11549, by xllamacpp's library) adds direction.N to the output of the 0-based
# block N, so the vector reaches block L + 1.
#
# Seen (Python 3.11, Linux x86-64, a random Llama of 5 blocks):
#   llama.cpp and transformers agree on the unsteered model: True
#   patch at layer 2, in brainpatch's transformers backend: added at the output of blocks [2]
#   the same patch, exported for llama.cpp as ['direction.3']: added at the output of blocks [3]
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check brainpatch==1.2.0 xllamacpp==2026.10.11549 gguf==0.19.0 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY' | tee "$folder/seen"
import ctypes
import os

import gguf
import numpy as np
import torch
import transformers
import xllamacpp
from transformers import LlamaConfig, LlamaForCausalLM

from brainpatch.backends.transformers_backend import TransformersBackend
from brainpatch.patch.compiler import compile_from_vectors, export_llamacpp_control_vector
from brainpatch.patch.format import BaseModelSpec, Intervention
from brainpatch.patch.loader import load_patch

transformers.logging.set_verbosity_error()
HIDDEN, BLOCKS, HEADS, LAYER = 64, 5, 4, 2
TOKENS = [3, 9, 27, 20, 60, 52, 28, 23, 8]

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=96, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=BLOCKS, num_attention_heads=HEADS,
    num_key_value_heads=HEADS, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
)
model = LlamaForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
vector = torch.randn(HIDDEN)


def export_model(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(96)
    writer.add_tokenizer_model("none")
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        array = tensor.numpy()
        if stem in outer:
            writer.add_tensor(f"{outer[stem]}.weight", array)
            continue
        _, _, block, inner = stem.split(".", 3)
        if names[inner] in ("attn_q", "attn_k"):  # llama.cpp rotates neighbouring numbers
            array = array.reshape(HEADS, 2, HIDDEN // HEADS // 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
        writer.add_tensor(f"blk.{block}.{names[inner]}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def opaque(num_bytes):
    """A C struct whose fields are not looked at."""
    return type("Opaque", (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_uint64 * (num_bytes // 8))]})


class LoadInfo(ctypes.Structure):  # common_control_vector_load_info; std::string is a pointer in manylinux2014's ABI
    _fields_ = [("strength", ctypes.c_float), ("file", ctypes.c_char_p)]


class Span(ctypes.Structure):  # std::vector
    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p)]


class ControlVector(ctypes.Structure):  # common_control_vector_data
    _fields_ = [("width", ctypes.c_int), ("data", Span)]


llama = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
ModelParams, ContextParams, Batch = opaque(256), opaque(512), opaque(56)
QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
llama.llama_log_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
llama.llama_log_set(ctypes.cast(QUIET, ctypes.c_void_p), None)


def call(name, result, *arguments):
    """A function of llama.cpp; arguments are pairs of a type and a value."""
    function = getattr(llama, name)
    function.restype, function.argtypes = result, [kind for kind, _ in arguments]
    return function(*(value for _, value in arguments))


POINTER = ctypes.c_void_p


def llama_log_probabilities(path, control_vector=None):
    call("llama_backend_init", None)
    loaded = call(
        "llama_model_load_from_file", POINTER, (ctypes.c_char_p, path.encode()),
        (ModelParams, call("llama_model_default_params", ModelParams)),
    )
    context = call(
        "llama_init_from_model", POINTER, (POINTER, loaded), (ContextParams, call("llama_context_default_params", ContextParams))
    )
    if control_vector is not None:
        info = LoadInfo(1.0, control_vector.encode())
        first = ctypes.addressof(info)
        infos = Span(first, first + ctypes.sizeof(info), first + ctypes.sizeof(info))
        load = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
        read = call(load, ControlVector, (ctypes.POINTER(Span), ctypes.byref(infos)))
        assert read.width == HIDDEN, read.width
        done = call(
            "llama_set_adapter_cvec", ctypes.c_int, (POINTER, context), (POINTER, read.data.begin),
            (ctypes.c_size_t, (read.data.end - read.data.begin) // 4), (ctypes.c_int, HIDDEN), (ctypes.c_int, 1), (ctypes.c_int, BLOCKS),
        )
        assert done == 0, done
    tokens = (ctypes.c_int32 * len(TOKENS))(*TOKENS)
    batch = call("llama_batch_get_one", Batch, (POINTER, ctypes.addressof(tokens)), (ctypes.c_int32, len(TOKENS)))
    assert call("llama_decode", ctypes.c_int, (POINTER, context), (Batch, batch)) == 0
    logits = call("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (POINTER, context), (ctypes.c_int32, -1))
    return torch.tensor(logits[:96]).log_softmax(-1)


def log_probabilities(block=None):
    def add(module, arguments, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    handle = None if block is None else model.model.layers[block].register_forward_hook(add)
    with torch.no_grad():
        found = model(torch.tensor([TOKENS])).logits[0, -1].log_softmax(-1)
    if handle is not None:
        handle.remove()
    return found


os.chdir(os.environ["FOLDER"])
export_model("model.gguf")
patch = compile_from_vectors(
    "tiny", {"v": vector.tolist()}, [Intervention(layer=LAYER, vector="v")],
    BaseModelSpec("tiny", "LlamaForCausalLM", HIDDEN, BLOCKS), "tiny.brainpatch", dtype="F32",
)
export_llamacpp_control_vector(patch, "tiny.gguf")
names = [tensor.name for tensor in gguf.GGUFReader("tiny.gguf").tensors]

backend = TransformersBackend()
backend.model, backend.model_id, backend.device = model, "tiny", torch.device("cpu")
backend.install_patch(load_patch(patch))
backend._install_hooks()
in_transformers = log_probabilities()
backend._remove_hooks()


def blocks(found):
    """The blocks at whose output the vector gives these log-probabilities. llama.cpp computes in part in 16 bits."""
    return [block for block in range(BLOCKS) if (log_probabilities(block) - found).abs().max() < 2e-2]


unsteered = bool((llama_log_probabilities("model.gguf") - log_probabilities()).abs().max() < 2e-2)
print(f"llama.cpp and transformers agree on the unsteered model: {unsteered}")
print(f"patch at layer {LAYER}, in brainpatch's transformers backend: added at the output of blocks {blocks(in_transformers)}")
print(f"the same patch, exported for llama.cpp as {names}: added at the output of blocks {blocks(llama_log_probabilities('model.gguf', 'tiny.gguf'))}")
PY
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"
