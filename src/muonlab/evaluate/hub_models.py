"""Models of transformers from their configs, without weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from muonlab.errors import InputError
from muonlab.extras import needed


def on_meta(name: str) -> nn.Module:
    """The model of a config.json, of the folder that holds one, or of a name on the hub, on the meta device: of the class that the
    config names, else with a language model's head, else bare. Raises InputError where there is none."""
    library = needed("transformers", f"--hf {name}", extra="hf")
    path = Path(name)
    if (path.suffix == ".json" or path.is_dir()) and not (path / "config.json" if path.is_dir() else path).is_file():
        raise InputError(f"--hf {name}: no such config; expected a config.json, its folder, or a name on the hub")
    try:
        config = library.AutoConfig.from_pretrained(name)
        kind = getattr(library, (getattr(config, "architectures", None) or [""])[0], None)
        with torch.device("meta"):
            if kind is not None:
                return kind(config)
            heads = library.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            auto = library.AutoModelForCausalLM if config.model_type in heads else library.AutoModel
            return auto.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--hf {name}: {why}") from None
