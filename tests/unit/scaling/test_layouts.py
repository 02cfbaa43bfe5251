"""A ladder plans the layout and the settings that `train` chooses by itself."""

from pretrain.config.load import load_run_config
from pretrain.planner.choice import sized
from pretrain.planner.micro_batch import with_micro_batch
from pretrain.planner.time.hardware import load_hardware
from pretrain.scaling.layouts import fastest_layout

H100, VOCAB = load_hardware("h100"), 50257
MEMORY = int(H100.memory_gib.value * 2**30)
WORDS = ("model=gpt3_350m", "engine=zero1_bf16", "train.micro_batch_size=auto", "train.global_batch_size=64")


def test_micro_batches_are_planned_as_train_chooses_them() -> None:
    config = load_run_config([*WORDS, "cluster.hardware=h100"])
    chosen, by_memory = sized(config, VOCAB, 1, MEMORY, H100), with_micro_batch(config, VOCAB, 1, MEMORY)
    assert chosen.train.micro_batch_size != by_memory.train.micro_batch_size
    assert fastest_layout(config, VOCAB, 1, H100) == chosen


def test_without_a_machine_of_the_cluster_memory_decides() -> None:
    config = load_run_config([*WORDS])
    assert fastest_layout(config, VOCAB, 1, H100) == with_micro_batch(config, VOCAB, 1, MEMORY)
