"""Weights: reading Hugging Face checkpoints, converting them, and the artifact on disk."""

from mlc_dsv3.weights.artifact import Artifact
from mlc_dsv3.weights.chat_config import gen_config
from mlc_dsv3.weights.checkpoint import Checkpoint
from mlc_dsv3.weights.conversion import artifact_name, convert
from mlc_dsv3.weights.identity import checkpoint_identity
from mlc_dsv3.weights.packing import pack_artifact

__all__ = ["Artifact", "Checkpoint", "artifact_name", "checkpoint_identity", "convert", "gen_config", "pack_artifact"]
