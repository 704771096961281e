#!/usr/bin/env bash
# transformers 5.23.0: Nemotron-H computes another thing one token at a time than in one pass. In a prompt the time step of
# its Mamba 2 layers is at least `time_step_min` (0.001 by default), whatever `time_step_limit` says; with a cache, single
# tokens are not bounded. So `generate` does not follow the distribution of the model's own forward pass over the same
# tokens, in float32 too. Mamba 2 itself, whose layers these are, agrees with itself.
#
# Seen (Python 3.11, CPU, small random models whose time steps are small, as trained ones may be):
#   nemotron_h  log-probabilities of single tokens and of one pass agree to 1e-4: False, with time_step_min=1e-9: True
#   mamba2      log-probabilities of single tokens and of one pass agree to 1e-4: True, with time_step_min=1e-9: True
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY' | tee "$folder/seen"
import torch
import transformers
from transformers import Mamba2Config, Mamba2ForCausalLM, NemotronHConfig, NemotronHForCausalLM

transformers.logging.set_verbosity_error()
COMMON = {"vocab_size": 64, "hidden_size": 32, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def nemotron_h(time_step_min):
    config = NemotronHConfig(
        **COMMON, layers_block_type=["linear_attention", "full_attention"] * 2, intermediate_size=32, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, mamba_num_heads=8, mamba_head_dim=8, n_groups=1, ssm_state_size=8, chunk_size=8,
        use_mamba_kernels=False, time_step_min=time_step_min,
    )
    return NemotronHForCausalLM(config)


def mamba2(time_step_min):
    config = Mamba2Config(
        **COMMON, num_hidden_layers=4, num_heads=8, head_dim=8, n_groups=1, state_size=8, chunk_size=8,
        time_step_min=time_step_min,
    )
    return Mamba2ForCausalLM(config)


@torch.no_grad()
def agrees(build, time_step_min):
    torch.manual_seed(0)
    model = build(time_step_min).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias"):
            parameter.fill_(-9.0)
        elif parameter.ndim > 1:
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    prompt = torch.randint(3, 64, (1, 12))
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, output_scores=True,
        return_dict_in_generate=True,
    )
    stepped = torch.stack(made.scores, 1).log_softmax(-1)
    whole = model(made.sequences, use_cache=False).logits[:, prompt.shape[1] - 1 : -1].log_softmax(-1)
    return bool((stepped - whole).abs().max() < 1e-4)


for build in (nemotron_h, mamba2):
    print(
        f"{build.__name__:11} log-probabilities of single tokens and of one pass agree to 1e-4: {agrees(build, 0.001)}, "
        f"with time_step_min=1e-9: {agrees(build, 1e-9)}"
    )
PY
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"
