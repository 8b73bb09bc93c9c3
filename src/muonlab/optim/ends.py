"""Where a model begins and ends: the layers that read its input, and those that turn features into logits."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from muonlab.optim.architectures import plain_path

# Modules that turn features into logits, by the names that public models give them.
_HEAD_NAMES = {
    "lm_head", "head", "heads", "unembed", "unembedding", "embed_out", "output_projection", "classifier", "score", "fc", "lm_loss",
    "generator_lm_head", "qa_outputs", "seq_relationship", "decoder_pred", "last_linear", "logits", "cls_classifier",
    "distillation_classifier", "head_dist", "proj_out", "classification_head", "qa_classifier", "AuxLogits", "aux1", "aux2",
    "aux_classifier", "class_labels_classifier", "bbox_predictor", "dense_prediction", "classifier_distill", "dist_head",
    "logits_proj", "sequence_summary", "class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head", "ctc_head", "answer_head",
}  # fmt: skip
_HIDDEN_TOO = {"fc", "proj_out"}  # hidden layers' names, too: squeeze-and-excitation, MLPs, attention; heads at the top alone
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COLORS = 3
_PATCHES = re.compile(r"(^|\.)(patch_embed\w*|conv_proj|vision_embed_tokens)(\.|$)")
_NUMBERED = re.compile(r"(^|\.)\d+(\.|$)")


def heads_of(model: nn.Module) -> dict[int, str]:
    """id of each module that turns features into logits -> what tells it: the library's accessor, its name, or its place."""
    found: dict[int, str] = {}
    for accessor in ("get_output_embeddings", "get_classifier"):
        for module in _told(model, accessor):
            found[id(module)] = f"{accessor}()"
    layers = [(path, module) for path, module in model.named_modules() if _is_linear(module) or _is_pointwise(module)]
    for path, module in _by_name(model, layers, whole=not found):
        found.setdefault(id(module), f"its name is {plain_path(path)}")
    return found or _by_place(model, [(path, module) for path, module in layers if _is_linear(module)])


def _told(model: nn.Module, accessor: str) -> list[nn.Module]:
    """The linear layers of what a library's accessor gives. transformers has get_output_embeddings, timm has get_classifier."""
    ask: Any = getattr(model, accessor, None)
    if not callable(ask):
        return []
    try:
        told = ask()
    except (AttributeError, NotImplementedError, TypeError):
        return []
    outer = list(told) if isinstance(told, tuple | list | nn.ModuleList) else [told]
    return [inner for one in outer if isinstance(one, nn.Module) for inner in one.modules() if _is_linear(inner)][-len(outer) :]


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _is_pointwise(module: nn.Module) -> bool:
    """A convolution that is a linear layer at every place: SqueezeNet's classifier."""
    return isinstance(module, _CONVOLUTIONS) and set(module.kernel_size) == {1} and module.groups == 1


def _by_name(model: nn.Module, linears: list[tuple[str, nn.Module]], whole: bool) -> list[tuple[str, nn.Module]]:
    """Those with a head's name that stand in no numbered layer; whole: of a head of several layers the last. (Where the library
    names the head, what stands before it is hidden: BERT's lm_head.dense.)"""
    last: dict[str, list[tuple[str, nn.Module]]] = {}
    lists = {path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for path, module in linears:
        parts = plain_path(path).split(".")
        for i, part in enumerate(parts):
            if part in _HEAD_NAMES and not _NUMBERED.search(".".join(parts[:i])):
                alone = i + 1 == len(parts)
                if part in _HIDDEN_TOO and alone and i > 0 and not parts[i - 1].endswith("head"):
                    break
                if not alone and not whole:
                    break
                if part == "head" and _pools(model, path, alone or isinstance(module, _CONVOLUTIONS)):
                    break
                name = ".".join(parts[: i + 1 + (".".join(parts[: i + 1]) in lists)])  # of a list of heads each is one
                head = last.setdefault(name, [])
                if head and plain_path(head[-1][0]) != plain_path(path):  # equal: the copies that peft keeps of one
                    head.clear()
                head.append((path, module))
                break
    if len(last) > 1:  # XLNet's stands before the head, XLM's is it
        last = {name: head for name, head in last.items() if name.rpartition(".")[2] != "sequence_summary"}
    return [one for head in last.values() for one in head]


def _pools(model: nn.Module, path: str, alone: bool) -> bool:
    """Whether a `head` in a model of transformers is a hidden one: it has layers of its own (ModernBERT's head.dense), or stands
    in a model that is part of another (SigLIP's towers). alone: it is a layer, or ends in a convolution (DPT's)."""
    parts = path.split(".")
    outer = [model, *(model.get_submodule(".".join(parts[:i])) for i in range(1, len(parts)))]
    models = sum(hasattr(type(module), "base_model_prefix") for module in outer)
    return models > 1 or (models == 1 and not alone)


def _by_place(model: nn.Module, linears: list[tuple[str, nn.Module]]) -> dict[int, str]:
    """The last linear layer outside of numbered ones with an output for each token; behind convolutions, the last of all."""
    outside = [(path, module) for path, module in linears if "." not in path or not _NUMBERED.search(plain_path(path))]
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    for tokens in dict.fromkeys([*rows[:1], max(rows, default=0)]):  # position tables come after, and are shorter
        alike = [module for _, module in outside if getattr(module, "weight").shape[0] == tokens]  # noqa: B009 (of any class)
        if alike:
            return {id(alike[-1]): "the last layer with an output for each token"}
    convolutions = [m for m in model.modules() if isinstance(m, _CONVOLUTIONS) and m.weight.shape[1] > 1]
    if outside and convolutions and not rows and outside[-1] == linears[-1] and not hasattr(model, "config"):
        return {id(outside[-1][1]): "the last linear layer behind convolutions"}
    return {}


def _embeds_patches(path: str) -> str | None:
    """Where it stands, if it does."""
    place = _PATCHES.search(path)
    return None if place is None or _NUMBERED.search(path[: place.start()]) else path[: place.start()]


def first_layers(model: nn.Module) -> dict[int, str]:
    """id of each convolution or patch embedding that reads the model's input -> why it is one."""
    found: dict[int, str] = {}
    reads: dict[str, int] = {}  # where embeddings of patches stand -> inputs of the first; those that take others read features
    weights = [(path, m) for path, m in model.named_modules() if isinstance(m, (nn.Embedding, nn.Linear, *_CONVOLUTIONS))]
    for i, (path, module) in enumerate(weights):
        convolution = isinstance(module, _CONVOLUTIONS)
        place = None if isinstance(module, nn.Embedding) else _embeds_patches(plain_path(path))
        inputs = module.weight.shape[1]
        embeds = place is not None and reads.setdefault(place, inputs) == inputs
        if convolution and module.groups == 1 and module.in_channels == _COLORS and max(module.kernel_size) > 1:
            found[id(module)] = "first layer: a convolution that reads an image"
        elif convolution and i == 0:
            found[id(module)] = "first layer: a convolution"
        elif embeds:
            found[id(module)] = "first layer: an embedding of patches"
    return found
