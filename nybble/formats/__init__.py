"""Checkpoints: the safetensors container and the ways linear layers are stored in it."""
