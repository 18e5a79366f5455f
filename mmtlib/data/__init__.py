"""Data: manifests, clips, features and batches. Nothing here imports a model."""

from mmtlib.data.manifest import ManifestError, media_root, read_manifest, write_manifest
from mmtlib.data.sources.survey import survey
