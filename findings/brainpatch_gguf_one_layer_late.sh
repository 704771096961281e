#!/usr/bin/env bash
# brainpatch 1.2.0: a patch exported for llama.cpp steers one block too late. A patch at layer L adds its vector to the output
# of the 0-based block L: brainpatch's own transformers backend puts its hook there. The export writes it as
# `direction.{L+1}`, since "layer indices are 1-based". llama.cpp (b11549, by xllamacpp's library) adds direction.N to the
# output of the 0-based block N, so the vector reaches block L + 1.
#
# Seen (Python 3.11, Linux x86-64, a random Llama of 5 blocks without attention):
#   llama.cpp and NumPy agree on the unsteered model: True
#   patch at layer 2, in brainpatch's transformers backend: a hook on the output of blocks [2]
#   the same patch, exported for llama.cpp as ['direction.3']: added at the output of blocks [3]
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/packages" brainpatch==1.2.0 xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6 pyyaml==6.0.3
FOLDER="$folder" PYTHONPATH="$folder/packages" python3 - <<'PY' | tee "$folder/seen"
import ctypes
import os

import gguf
import numpy as np
import xllamacpp

from brainpatch.backends.transformers_backend import TransformersBackend
from brainpatch.patch.compiler import compile_from_vectors, export_llamacpp_control_vector
from brainpatch.patch.format import BaseModelSpec, Intervention
from brainpatch.patch.loader import load_patch

HIDDEN, INNER, WORDS, BLOCKS, LAYER, TOKEN = 64, 96, 96, 5, 2, 23

random = np.random.default_rng(0)


def matrix(rows, columns):
    return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)


embedding, readout = matrix(WORDS, HIDDEN) * 8, matrix(WORDS, HIDDEN)
blocks = [{"ffn_gate": matrix(INNER, HIDDEN), "ffn_up": matrix(INNER, HIDDEN), "ffn_down": matrix(HIDDEN, INNER)} for _ in range(BLOCKS)]
vector = random.standard_normal(HIDDEN).astype(np.float32)


def norm(x):
    return x / np.sqrt((x * x).mean() + 1e-5)


def log_softmax(x):
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


def log_probabilities(steered=None):
    """Of the word after `TOKEN`, with the vector added to the output of block `steered`."""
    x = embedding[TOKEN]
    for number, weights in enumerate(blocks):
        read = norm(x)
        gate = weights["ffn_gate"] @ read
        x = x + weights["ffn_down"] @ (gate / (1 + np.exp(-gate)) * (weights["ffn_up"] @ read))
        if number == steered:
            x = x + vector
    return log_softmax(readout @ norm(x))


def export_model(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("none")
    ones, zeros = np.ones(HIDDEN, np.float32), np.zeros((HIDDEN, HIDDEN), np.float32)
    tensors = {"token_embd": embedding, "output_norm": ones, "output": readout}
    for number, weights in enumerate(blocks):
        attention = {"attn_norm": ones, "ffn_norm": ones, "attn_q": zeros, "attn_k": zeros, "attn_v": zeros, "attn_output": zeros}
        tensors |= {f"blk.{number}.{name}": array for name, array in (attention | weights).items()}
    for name, array in tensors.items():
        writer.add_tensor(f"{name}.weight", array)
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
    tokens = (ctypes.c_int32 * 1)(TOKEN)
    batch = call("llama_batch_get_one", Batch, (POINTER, ctypes.addressof(tokens)), (ctypes.c_int32, 1))
    assert call("llama_decode", ctypes.c_int, (POINTER, context), (Batch, batch)) == 0
    logits = call("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (POINTER, context), (ctypes.c_int32, -1))
    return log_softmax(np.array(logits[:WORDS]))


class Block:
    """All that brainpatch asks of a block before the model runs."""

    def __init__(self, number):
        self.number = number

    def register_forward_hook(self, hook):
        hooked.append(self.number)


class Backend(TransformersBackend):
    """brainpatch's, which puts its hooks on these blocks."""

    def _decoder_layers(self):
        return [Block(number) for number in range(BLOCKS)]


os.chdir(os.environ["FOLDER"])
export_model("model.gguf")
patch = compile_from_vectors(
    "tiny", {"v": vector.tolist()}, [Intervention(layer=LAYER, vector="v")],
    BaseModelSpec("tiny", "LlamaForCausalLM", HIDDEN, BLOCKS), "tiny.brainpatch", dtype="F32",
)
export_llamacpp_control_vector(patch, "tiny.gguf")
names = [tensor.name for tensor in gguf.GGUFReader("tiny.gguf").tensors]

hooked = []
backend = Backend()
loaded = load_patch(patch)
backend.patches[loaded.manifest.name] = loaded
backend._install_hooks()


def agree(found, block=None):
    """llama.cpp computes in part in 16 bits."""
    return bool(np.abs(log_probabilities(block) - found).max() < 2e-2)


steered = llama_log_probabilities("model.gguf", "tiny.gguf")
print(f"llama.cpp and NumPy agree on the unsteered model: {agree(llama_log_probabilities('model.gguf'))}")
print(f"patch at layer {LAYER}, in brainpatch's transformers backend: a hook on the output of blocks {hooked}")
print(
    f"the same patch, exported for llama.cpp as {names}: added at the output of blocks "
    f"{[block for block in range(BLOCKS) if agree(steered, block)]}"
)
PY
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"
