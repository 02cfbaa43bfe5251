"""Matrix products by tiles and by measured tables."""

import dataclasses

import pytest

from pretrain.planner.time.hardware import Product, ProductTable, load_hardware
from pretrain.planner.time.products import products_of

H100 = load_hardware("h100")
ROWS = (Product(4096, 4096, 4096, 600.0), Product(8192, 1024, 512, 150.0), Product(512, 512, 512, 20.0))
MEASURED = dataclasses.replace(H100, products=(ProductTable("bf16", "measured", "here", ROWS),))


@pytest.mark.parametrize("row", ROWS)
def test_a_measured_table_reproduces_its_rows(row: Product) -> None:
    seconds = products_of(MEASURED, "bf16", 1.0).seconds(row.m, row.k, row.n)
    # A long step keeps only this share of a short measurement.
    kept = MEASURED.sustained_share.value
    assert 2.0 * row.m * row.k * row.n / seconds / 1e12 == pytest.approx(kept * row.tflops)


def test_between_measured_products_the_correction_is_between() -> None:
    plain, corrected = products_of(H100, "bf16", 1.0), products_of(MEASURED, "bf16", 1.0)
    ratios = [corrected.seconds(r.m, r.k, r.n) / plain.seconds(r.m, r.k, r.n) for r in ROWS]
    between = corrected.seconds(3000, 2000, 1500) / plain.seconds(3000, 2000, 1500)
    assert min(ratios) < between < max(ratios)


def test_another_precision_ignores_the_table() -> None:
    assert products_of(MEASURED, "fp32", 1.0) == products_of(H100, "fp32", 1.0)


def test_no_product_beats_the_best_rate_or_the_memory() -> None:
    products = products_of(H100, "bf16", 1.0)
    for m, k, n in ((8192, 8192, 8192), (16384, 64, 16384), (1, 4096, 4096), (300, 70, 90)):
        seconds = products.seconds(m, k, n)
        assert 2.0 * m * k * n / seconds <= 794.5e12
        assert 2 * (m * k + k * n + m * n) / seconds <= 3350e9


def test_a_wave_more_takes_longer() -> None:
    products = products_of(H100, "bf16", 1.0)
    # 132 multiprocessors take 132 tiles of 256 x 128 at a time: here 66 x 2, then two more that all wait for.
    assert products.seconds(256 * 67, 4096, 256) > 1.2 * products.seconds(256 * 66, 4096, 256)
