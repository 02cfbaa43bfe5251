"""The name under which tests written before the move find the pretend GPU."""

from pretrain.pretend.device import NAME, PretendGpu, PretendTensor, device, ledger

__all__ = ["NAME", "PretendGpu", "PretendTensor", "device", "ledger"]
