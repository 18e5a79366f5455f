"""Multiscale audio-video Transformers: models, losses, data and the pipeline that measures them."""

import warnings

__version__ = "0.1.0"

# tqdm, which transformers imports, says so in every notebook without ipywidgets; nothing here draws such bars.
warnings.filterwarnings("ignore", message="IProgress not found")
