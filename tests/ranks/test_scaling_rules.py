"""muP and CompleteP: the rules of optim.base_width and base_depth, and what they keep constant."""

import math

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.schedule import positions_of
from pretrain.model.scaling import Scale, Scaling
from tests.support.models import batches, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import own_batch, plain_stage, start, train, whole_state

STEPS = range(8)
LAYER = "decoder.layers.1."
TABLE = {
    "embedding.word_embeddings.weight": Scale(eps=1 / 4),
    "embedding.position_embeddings.weight": Scale(eps=1 / 4),
    f"{LAYER}self_attention.linear_qkv.weight": Scale(1 / 2, 1 / 4, 4, 1 / 8),
    f"{LAYER}mlp.linear_fc1.weight": Scale(1 / 2, 1 / 4, 4, 1 / 8),
    f"{LAYER}mlp.linear_fc1.bias": Scale(eps=1 / 8),
    f"{LAYER}input_layernorm.weight": Scale(eps=1 / 8),
    f"{LAYER}self_attention.linear_proj.weight": Scale(1 / 4, 1 / 8, 8, 1 / 4),
    f"{LAYER}mlp.linear_fc2.weight": Scale(1 / 4, 1 / 8, 8, 1 / 4),
    f"{LAYER}mlp.linear_fc2.bias": Scale(lr=1 / 2, eps=1 / 4),
    "decoder.final_layernorm.weight": Scale(eps=1 / 4),
    "output_layer.weight": Scale(1 / 4, 1 / 4, 4),
}


def test_the_rules_of_each_tensor() -> None:
    """The table of muP and CompleteP for 4 x the width and 2 x the depth."""
    rules = Scaling(width=4, depth=2)
    vectors = ("bias", "norm.weight")
    assert {name: rules.of_tensor(name, 1 if name.endswith(vectors) else 2) for name in TABLE} == TABLE


def test_only_a_tied_head_has_an_output_multiplier() -> None:
    def output(tied: bool) -> float:
        config = run_config("llama", f"model.tie_embeddings={str(tied).lower()}", "optim.base_width=8")
        return Scaling.of(config.model, config.optim).output

    assert output(tied=True) == 1 / 4 and output(tied=False) == 1


def trained(here: Runtime, config: RunConfig) -> tuple[dict[str, np.ndarray], float]:
    """The state after training, and the mean absolute value that the final norm receives."""
    engine = start(here, config)
    train(here, config, engine, STEPS)
    seen: list[float] = []
    norm = engine.stage.chunks[0].decoder.final_layernorm
    hook = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].abs().mean().item()))
    engine.logits(own_batch(here, config, 0)[:, :-1])
    hook.remove()
    return whole_state(engine), seen[0]


def config_of(*overrides: str, width: int = 32, layers: int = 2) -> RunConfig:
    """Heads of one width, as the rules suppose."""
    shape = (f"model.hidden_size={width}", f"model.num_heads={width // 16}", f"model.ffn_hidden_size={2 * width}")
    return run_config("gpt", *batches(1, 1), *shape, f"model.num_layers={layers}", *overrides)


def gradients(here: Runtime, config: RunConfig) -> dict[str, float]:
    """Root mean square of each tensor's first gradient."""
    stage, tokens = plain_stage(here, config), own_batch(here, config, 0)
    stage(0, tokens[:, :-1], positions_of(tokens[:, :-1]), None, labels=tokens[:, 1:]).mean().backward()
    return {local.name: p.grad.square().mean().sqrt().item() for p, local in stage.local.items() if p.grad is not None}


@pytest.mark.parametrize("tied", full_except(["true", "false"], ["false"]))
def test_eps_follows_the_gradients(tied: str) -> None:
    """A model 4 x as wide and deep has gradients that are smaller by the same factor, within a factor of 2."""
    sizes = {"width": 128, "layers": 8}
    base = (f"model.tie_embeddings={tied}", "optim.base_width=32", "optim.base_depth=2")
    small, large = (run_ranks(gradients, 1, config_of(*base, **given))[0] for given in ({}, sizes))
    rules = Scaling(width=4, depth=4)
    for name, size in small.items():
        assert abs(math.log(large[name] / size / rules.of_tensor(name, 2).eps)) < math.log(2), name


@pytest.mark.parametrize("tied", ["true", "false"])
def test_at_the_size_of_the_base_model_no_bit_changes(tied: str) -> None:
    tie = f"model.tie_embeddings={tied}"
    runs = [(), ("optim.base_width=32", "optim.base_depth=2")]
    plain, same = (run_ranks(trained, 1, config_of(tie, *overrides))[0][0] for overrides in runs)
    assert plain.keys() == same.keys()
    assert all(plain[name].tobytes() == same[name].tobytes() for name in plain)


@pytest.mark.parametrize(
    ("key", "small", "large"),
    full_except(
        [("base_width", (32, 2), (128, 2)), ("base_depth", (32, 2), (32, 8))], [("base_width", (32, 2), (128, 2))]
    ),
)
@pytest.mark.parametrize("tied", ["true", "false"])
def test_activations_keep_their_size(key: str, small: tuple[int, int], large: tuple[int, int], tied: str) -> None:
    """The coordinate check: at 4 x the size they stay within 1.3 with the rules, and grow otherwise."""

    def ratio(*overrides: str) -> float:
        sizes = []
        for width, layers in (small, large):
            config = config_of(f"model.tie_embeddings={tied}", *overrides, width=width, layers=layers)
            sizes.append(run_ranks(trained, 1, config)[0][1])
        return sizes[1] / sizes[0]

    base = small[0] if key == "base_width" else small[1]
    with_rules, without = ratio(f"optim.{key}={base}"), ratio()
    assert abs(math.log(with_rules)) < math.log(1.3)
    assert without > 3
