"""Names and options of `muonlab.optimizer`, for editors and type checkers. A test compares them with what there is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypedDict

from muonlab.optim.polar import Orthogonalizer

OptimizerName = Literal[
    "adamuon",
    "adamw",
    "contra_muon",
    "lion",
    "muon",
    "muon_floor",
    "muonh",
    "muown",
    "normuon",
    "sgd",
    "smoothed_muon",
    "soap_muon",
]
OrthogonalizerName = Literal[
    "fast", "keller5", "you5", "polar_express5", "dsv4_10", "converged12", "cubic", "newtonschulz5", "newtonschulz10",
    "polar_express", "cayley", "svd", "exact",
]  # fmt: skip
Aux = Literal["adamw", "lion", "sgd"]
Constraint = Literal["none", "unit_norm", "geodesic", "geodesic_by_norm", "sphere"]
Nonfinite = Literal["skip", "raise", "ignore"]
Scale = Literal["aspect", "match_adamw_rms", "rms_to_rms", "sqrt_max", "none"]
Decay = Literal["param", "cautious", "update", "both", "squared", "cautious_squared", "coupled"]


class Options(TypedDict, total=False):
    """Of the optimizers by name. Which has which, with what default: `muonlab.optimizers()`, or `muonlab optimizers`."""

    # of every Muon (momentum and nesterov: of sgd, too)
    momentum: float
    nesterov: bool
    momentum_form: Literal["ema", "heavy_ball"]
    momentum_dtype: Literal["float32", "bfloat16"]
    orthogonalizer: OrthogonalizerName | str | Orthogonalizer
    scale: Scale | str
    decay: Decay
    # of some
    betas: tuple[float, float]  # adamw, lion, muown
    eps: float  # adamw, adamuon, muown, soap_muon
    coupled: bool  # adamw, lion, muown: L2 in place of decoupled decay
    beta2: float | None  # normuon, adamuon
    axis: Literal["long", "output", "input"]  # normuon
    sign: bool  # adamuon
    rms: float  # adamuon
    smoothing: float  # smoothed_muon
    lookahead: bool  # smoothed_muon
    coefficient: float  # contra_muon
    rounds: int  # contra_muon
    floor: float  # muon_floor
    per: Literal["matrix", "row", "none"]  # muon_floor
    outward: float  # muon_floor
    inward: float  # muon_floor
    radius: bool  # muon_floor
    shampoo_beta: float  # soap_muon
    every: int  # soap_muon


# What options of torch.optim.Muon, KellerJordan/Muon, dion, Moonlight and Emerging-Optimizers are called here, and what is said.
_STEPS = ("orthogonalizer", ", as orthogonalizer='keller5' or muonlab.optim.orthogonalizer('keller5', steps=...)")
_METHOD = ("orthogonalizer", ", by a name of muonlab.optim.orthogonalizers()")
_BETAS = ("aux_betas", ", AdamW's on embeddings, head and vectors; a Muon has momentum")
_EPS = ("aux_eps", ", AdamW's on embeddings, head and vectors")
_ROLES = ("roles", "={pattern: role} where you know better than muonlab.optimizer(model, ...), which decides for each parameter")
_ELSEWHERE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("ns_steps", "newton_schulz_steps", "num_ns_steps", "backend_steps", "ns_coefficients", "coefficient_type"), _STEPS
    ),
    **dict.fromkeys(("backend", "use_polar_express", "newton_schulz_func"), _METHOD),
    **dict.fromkeys(
        ("adjust_lr_fn", "adjust_lr", "scale_mode"), ("scale", ": 'aspect' (their 'original'), 'match_adamw_rms' or 'rms_to_rms'")
    ),
    "rms_scale": ("scale", "='match_adamw_rms'"),
    **dict.fromkeys(("betas", "adam_betas", "adamw_betas"), _BETAS),
    **dict.fromkeys(("eps", "epsilon", "adam_eps", "adamw_eps"), _EPS),
    **dict.fromkeys(("adam_lr", "adamw_lr", "scalar_lr", "embed_lr", "head_lr"), ("aux_lr", ": a number, or {role: number}")),
    **dict.fromkeys(("adam_wd", "adamw_wd", "adam_weight_decay", "adamw_weight_decay"), ("aux_weight_decay", "")),
    **dict.fromkeys(("use_muon", "muon_params", "adamw_params", "adam_params", "algorithm"), _ROLES),
    **dict.fromkeys(("learning_rate", "muon_lr", "matrix_lr"), ("lr", "")),
    **dict.fromkeys(("wd", "muon_wd", "muon_weight_decay"), ("weight_decay", "")),
    **dict.fromkeys(("mu", "beta", "beta1", "muon_momentum", "muon_beta"), ("momentum", "")),
    **dict.fromkeys(("cautious_wd", "cautious"), ("decay", "='cautious'")),
    **dict.fromkeys(
        ("flatten", "num_heads", "split_heads", "qkv_split"), ("specs", "={pattern: {'split': ...}}, how it is stored")
    ),
}
_NOT_THERE = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")
_ARGUMENTS = ("lr", "weight_decay", "roles", "specs")  # of muonlab.optimizer, for every optimizer


def elsewhere(option: str, own: Collection[str]) -> str:
    """What another library's option is called here, in words, for an optimizer with these options of its own; nothing where there
    is no such thing."""
    if option in _NOT_THERE:
        return "there is no such option here, leave it out"
    here, words = _ELSEWHERE.get(option, ("", ""))
    plain = here.removeprefix("aux_")
    if plain != here:
        if plain in (*own, *_ARGUMENTS) and "orthogonalizer" not in own:  # the rest is trained as the matrices are
            return f"here that is {plain}"
        return f"here that is {here}{words}" if "orthogonalizer" in own else ""
    return f"here that is {here}{words}" if here in own or here in _ARGUMENTS else ""
