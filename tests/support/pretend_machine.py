"""The name under which tests written before the move find the pretend GPU."""

from pretrain.pretend.machine import on_pretend_gpu, without_values

__all__ = ["on_pretend_gpu", "without_values"]
