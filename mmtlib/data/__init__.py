"""Data: manifests, clips, features and batches. Nothing here imports a model."""

from mmtlib.data.manifest import ManifestError, read_manifest, write_manifest

__all__ = ["ManifestError", "read_manifest", "write_manifest"]
