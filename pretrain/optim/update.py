"""How each parameter is updated, from its name and the configuration alone. It does not import torch."""

from dataclasses import dataclass

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.model.scaling import LAYER, Scaling

TOKEN_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class Update:
    """Parameters with equal values are in one optimizer group."""

    is_muon: bool
    """Whether the update is the orthogonalised momentum; else it is that of AdamW."""
    is_decayed: bool
    lr_scale: float
    """Learning rate over the run's."""
    weight_decay: float
    eps: float


def update_of(name: str, dimensions: int, model: ModelConfig, optim: OptimConfig) -> Update:
    """The update of a parameter, by its name in the whole model and its number of dimensions."""
    scale = Scaling.of(model, optim).of_tensor(name, dimensions)
    is_muon = optim.name == "muon" and is_layer_matrix(name, dimensions)
    is_decayed = dimensions >= 2 and "position_embeddings" not in name
    ratio = optim.muon.lr_ratio if is_muon else optim.embedding_lr_ratio if name == TOKEN_EMBEDDING else 1.0
    decay = optim.weight_decay * scale.weight_decay if is_decayed else 0.0
    return Update(is_muon, is_decayed, scale.lr * ratio, decay, 0.0 if is_muon else optim.eps * scale.eps)


def is_layer_matrix(name: str, dimensions: int) -> bool:
    """Whether it is a matrix of a layer, which Muon updates. Embeddings and the head look up or score single rows."""
    return name.startswith(LAYER) and dimensions == 2
