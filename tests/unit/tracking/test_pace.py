"""Sizes of validations, and which curve a result belongs to."""

from pretrain.config.load import load_run_config
from pretrain.tracking.pace import ValidationSizes, series_name, validation_sizes


def test_sizes_are_limited_in_each_dataset():
    evaluation = load_run_config(["evaluation.max_samples=10", "evaluation.final_max_samples=null"]).evaluation
    assert validation_sizes([4, 50], evaluation) == ValidationSizes(at_interval=14, final=54)


def test_a_result_of_another_sample_size_is_another_series():
    sizes = ValidationSizes(at_interval=10, final=54)
    assert series_name("validation", {"samples": 10}, sizes) == "validation"
    assert series_name("validation", {"samples": 54}, sizes) == "final_validation"
    assert series_name("train", {"samples": 54}, sizes) == "train"
    assert series_name("validation", {}, sizes) == "validation"
