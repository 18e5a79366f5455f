"""Multiscale audio-video Transformers: models, losses, data and the pipeline that measures them."""

__version__ = "0.1.0"
