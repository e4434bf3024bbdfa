"""A compiler from optimizer specs to PyTorch: `optdsl build specs/`."""
