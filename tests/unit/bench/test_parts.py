"""Time by part: kernels and operators by their names, each moment of a trace given to one part."""

import pytest

from pretrain.bench.parts import UPDATE_MARK, part_of, part_times


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "matrix products",
            (
                "aten::mm",
                "aten::addmm",
                "aten::bmm",
                "aten::_scaled_mm",
                "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
                "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
                "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
                "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>",
                "void cublasLt::splitKreduce_kernel<32, 16, int, float>",
                "triton_tem_fused_addmm_3",
                "triton_tem_fused_mm_12",
                "Cijk_Ailk_Bljk_BBS_BH_MT128x128x32",
            ),
        ),
        (
            "attention",
            (
                "aten::_scaled_dot_product_flash_attention_for_cpu",
                "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
                "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>",
                "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128x128",
                "fmha_cutlassB_bf16_aligned_64x64_k128_sm80",
                "triton_tem_fused_flex_attention_backward_0",
            ),
        ),
        (
            "elementwise and norms",
            (
                "aten::native_layer_norm",
                "aten::gelu_backward",
                "aten::_log_softmax",
                "aten::command",
                "aten::embedding_dense_backward",
                "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
                "triton_red_fused_native_layer_norm_2",
                "Memcpy DtoD (Device -> Device)",
            ),
        ),
        ("communication", ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "c10d::allreduce_", "gloo:all_reduce")),
        ("data", ("Memcpy HtoD (Pinned -> Device)",)),
    ],
)
def test_the_name_tells_the_part(part, names):
    assert {name: part_of(name) for name in names} == dict.fromkeys(names, part)


def event(cat, name, began, seconds, **more):
    return {"ph": "X", "cat": cat, "name": name, "ts": 1e6 * began, "dur": 1e6 * seconds, "tid": 1, "args": {}, **more}


def mark(name, began, seconds=0.0):
    return event("user_annotation", name, began, seconds)


def kernel(name, launched, began, seconds, correlation):
    yield event("cuda_runtime", "cudaLaunchKernel", launched, 0.01, args={"correlation": correlation})
    yield event("kernel", name, began, seconds, tid=7, args={"correlation": correlation})


def test_an_operator_counts_without_those_within_it_and_what_attention_is_made_of_is_attention():
    times = part_times(
        {
            "traceEvents": [
                mark("step 7", 0, 20),
                event("cpu_op", "aten::linear", 1, 5),
                event("cpu_op", "aten::t", 1, 1),
                event("cpu_op", "aten::addmm", 2, 3),
                event("cpu_op", "aten::_scaled_dot_product_attention_math", 7, 4),
                event("cpu_op", "aten::bmm", 8, 2),
                mark(UPDATE_MARK, 12),
                event("cpu_op", "aten::_fused_adamw_", 13, 2),
                event("cpu_op", "c10d::allreduce_", 16, 1),
                event("cpu_op", "aten::mm", 5, 9, tid=2),
                event("cpu_op", "aten::mm", 21, 1),
                event("cpu_op", "aten::add", 3, 0),
            ]
        },
        on_gpu=False,
    )
    assert times.seconds == pytest.approx(
        {"matrix products": 4, "elementwise and norms": 1, "attention": 4, "optimizer": 2, "communication": 1}
    )
    assert times.step_seconds == 20


def test_operators_are_not_taken_for_the_work_of_a_gpu():
    trace = {"traceEvents": [mark("step 7", 0, 20), event("cpu_op", "aten::mm", 0, 19)]}
    assert part_times(trace, on_gpu=True).seconds == {}


def test_a_kernel_belongs_to_where_it_was_launched_and_communication_counts_where_nothing_else_runs():
    times = part_times(
        {
            "traceEvents": [
                mark("step 7", 0, 20),
                event("cpu_op", "aten::mm", 0, 19),
                *kernel("nvjet_tst", 1, 2, 6, 1),
                *kernel("ncclDevKernel_ReduceScatter", 1.5, 5, 5, 2),
                mark(UPDATE_MARK, 3),
                # Launched in the update while products still run: it waits for them, and is the optimizer's.
                *kernel("multi_tensor_apply_kernel", 4, 11, 3, 3),
                *kernel("nvjet_tst", 19, 30, 5, 4),
                mark("step 8", 25, 30),
                *kernel("nvjet_tst", 26, 40, 1, 5),
            ]
        },
        on_gpu=True,
    )
    assert times.seconds == pytest.approx({"matrix products": 6, "communication": 2, "optimizer": 8})


def test_the_step_of_middle_length_is_looked_at():
    steps = ((0, 50, 5), (50, 10, 1), (60, 12, 2))
    events = [mark(f"step {number}", began, whole) for number, (began, whole, _) in enumerate(steps)]
    events += [event("cpu_op", "aten::mm", began + 1, seconds) for began, _, seconds in steps]
    times = part_times({"traceEvents": events}, on_gpu=False)
    assert (times.seconds, times.step_seconds) == (pytest.approx({"matrix products": 2}), 12)
