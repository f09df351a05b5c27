"""vitscale: train Vision Transformers at scale, and know how they scale."""

__version__ = "0.1.0"
