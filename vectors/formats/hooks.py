"""Names of places in a model, as other libraries write them -> our site and layer.

TransformerLens's `hook_attn_out` and `hook_mlp_out` are what a block adds to the residual stream. That is the module's
output, but in models with a norm behind the module it is the norm's (seen with TransformerLens 4.3). A file does not
say whether there is one, so the model's name decides; a file without it is taken to be of a model without such norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vectors.errors import InvalidVector
from vectors.vocabulary import Site

_SITES: Mapping[str, tuple[Site, int]] = {
    "resid_post": ("residual", 0), "residual_post": ("residual", 0), "residual": ("residual", 0),
    "block_output": ("residual", 0), "resid_pre": ("residual", -1), "residual_pre": ("residual", -1),
    "block_input": ("residual", -1), "mlp": ("mlp", 0), "mlp_out": ("mlp", 0), "mlp_output": ("mlp", 0),
    "ffn_out": ("mlp", 0), "attention": ("attention", 0), "attn_out": ("attention", 0),
    "attention_output": ("attention", 0),
}  # fmt: skip
_MODULES: Mapping[str, Site] = {"": "residual", ".mlp": "mlp", ".self_attn": "attention"}
_HOOK = re.compile(r"(?:blocks\.(?P<layer>[0-9]{1,4})\.)?(?P<prefix>hook_)?(?P<site>[a-z_]{1,40})")
_MODULE = re.compile(r"(?:model\.)?layers\.(?P<layer>[0-9]{1,4})(?P<module>\.mlp|\.self_attn)?(?:\.output)?")

_ATTENTION_NORM_IS_SITE = re.compile(r"gemma-?[234]n?-|olmo-?[23]|flex-?olmo|exaone-?4", re.IGNORECASE)
_ATTENTION_NORM_IS_NO_SITE = re.compile(r"glm-.*-0414|glm-4\.[16]v", re.IGNORECASE)
"""Models with a norm behind attention and MLP: `post_attention_norm` is the former, or a norm elsewhere."""


def place_of(hook: str, layer: int | None = None, model: str | None = None) -> tuple[Site, int, int | None]:
    """Our site, what to add to its layer, and the layer of a name such as `resid_pre` or `blocks.3.hook_mlp_out`.

    `layer` is what the file says beside it, `model` the name of the model that the file is for. Raises `InvalidVector`
    for a place that is no site, and for a layer that contradicts `layer`.
    """
    if match := _MODULE.fullmatch(hook):
        site, shift = _MODULES[match["module"] or ""], 0
    else:
        match = _HOOK.fullmatch(hook)
        found = _SITES.get(match["site"]) if match else None
        if match is None or found is None:
            raise InvalidVector(
                f"the file's hook: expected one of {', '.join(_SITES)}, or a module such as model.layers.3.mlp, "
                f"got {hook[:80]!r}",
                "site",
            )
        site, shift = found
        if match["prefix"] and model and site in ("attention", "mlp"):
            site = _behind_norm(site, hook, model)
    named = layer if match["layer"] is None else int(match["layer"])
    if layer is not None and named != layer:
        raise InvalidVector(f"the file says layer {layer}, but its hook is {hook[:80]!r}", "layer")
    return site, shift, named


def _behind_norm(site: Site, hook: str, model: str) -> Site:
    """The site of what attention or MLP (`site`) adds to the residual stream of `model`."""
    is_site = _ATTENTION_NORM_IS_SITE.search(model)
    if not is_site and not _ATTENTION_NORM_IS_NO_SITE.search(model):
        return site
    if is_site and site == "attention":
        return "post_attention_norm"
    raise InvalidVector(
        f"the file's hook is {hook[:80]}, which in {model[:60]} is behind the norm that follows the module; no site is "
        f"there. The module's own output is {site}.N",
        "site",
    )
