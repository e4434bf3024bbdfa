"""Fused kernels, a module per optimizer: `_fused` imports them when a step first needs them."""
