"""Optional Triton kernels for CUDA, off until `enable(True)`. Importing this imports no Triton."""

from muonlab.optim.kernels.switch import available, chosen, enable, enabled
from muonlab.optim.kernels.symmetric import symmetric_product

__all__ = ["available", "chosen", "enable", "enabled", "symmetric_product"]
