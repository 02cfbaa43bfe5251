"""Test modules here import Megatron: once, and without its advice."""

from pretrain.distributed.vendor_imports import megatron_imports

with megatron_imports():
    import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401
