"""Adapt a frozen hierarchical transformer (Swin, PVTv2) to several dense tasks at once (PTSA, arXiv 2509.19602)."""

import ptsa_serve  # noqa: F401  switches off usage reports, so before any library
import training._torchvision  # noqa: F401  must run before anything imports timm
