"""Time by part: kernels and operators by their names, each moment of a trace given to one part."""

import gzip
import json

import pytest

from pretrain.bench.measure import parts_of
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
                "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NNT",
                "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::"
                "GemmUniversal<cute::tuple<int, int, int, int>, cutlass::gemm::collective::CollectiveMma<>>>>",
                "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8",
                "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, 128, 16, 4, 4>",
                "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float, float, float, float>",
                "triton_tem_fused_addmm_3",
                "triton_tem_fused_mm_12",
                "triton_tem_fused__scaled_dot_product_flash_attention_addmm_transpose_view_5",
                "Cijk_Ailk_Bljk_BBS_BH_MT128x128x32",
            ),
        ),
        (
            "attention",
            (
                "aten::_scaled_dot_product_flash_attention_for_cpu",
                "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
                "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>",
                "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::"
                "Flash_bwd_kernel_traits<128, 64, 128, 8, 2, 4, 2, false, false, cutlass::bfloat16_t>>",
                "void pytorch_flash::flash_bwd_dot_do_o_kernel<true, Flash_bwd_kernel_traits<128, 64, 128, 8>>",
                "void pytorch_flash::flash_bwd_convert_dq_kernel<Flash_bwd_kernel_traits<128, 64, 128, 8>>",
                "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloop>>>",
                "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnBwdSm90<flash::CollectiveMainloop>>>",
                "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1_kernel0_0",
                "void cudnn::fusion::compute_dot_do_o_specialized<true, 128, __nv_bfloat16, float>",
                "void cudnn::fusion::convert_dq_to_16bits<__nv_bfloat16, float>",
                "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128x128",
                "fmha_cutlassB_bf16_aligned_64x64_k128_sm80",
                "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>)",
                "triton_tem_fused_flex_attention_0",
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
                "triton_poi_fused_addmm_gelu_view_1",
                "triton_poi_fused__scaled_dot_product_flash_attention_transpose_view_4",
                "triton_per_fused__scaled_dot_product_cudnn_attention_backward_mm_native_layer_norm_7",
                "triton_red_fused__unsafe_view_addmm_gelu_backward_sum_11",
                "triton_poi_fused_bmm_mul_silu_3",
                "triton_unk_fused_addmm_0",
                "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>",
                "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<c10::BFloat16, float, 64>",
                "void at::native::(anonymous namespace)::layer_norm_grad_input_kernel_vectorized<c10::BFloat16, float>",
                "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float>",
                "void (anonymous namespace)::softmax_warp_forward<float, float, float, 11, true, false>",
                "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
                "void at::native::(anonymous namespace)::vectorized_gather_kernel<16, long>",
                "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long, unsigned int, 2>",
                "void at::native::(anonymous namespace)::compute_grad_weight<c10::BFloat16, long>",
                "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<OpaqueType<2u>, unsigned int>",
                "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
                # By its name alone: what is launched after the mark of the update is the optimizer's.
                "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>, "
                "FusedAdamMathFunctor<float, 4, (ADAM_MODE)1, false>>",
                "Memset (Device)",
                "Memcpy DtoH (Device -> Pinned)",
                "Memcpy DtoD (Device -> Device)",
            ),
        ),
        (
            "communication",
            (
                "ncclDevKernel_AllReduce_Sum_f32_RING_LL",
                "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
                "c10d::allreduce_",
                "gloo:all_reduce",
            ),
        ),
        ("data", ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD (Pageable -> Device)")),
    ],
)
def test_the_name_decides_the_part(part, names):
    assert {name: part_of(name) for name in names} == dict.fromkeys(names, part)


def event(cat, name, began, seconds, **more):
    return {"ph": "X", "cat": cat, "name": name, "ts": 1e6 * began, "dur": 1e6 * seconds, "tid": 1, "args": {}, **more}


def mark(name, began, seconds=0.0):
    return event("user_annotation", name, began, seconds)


def kernel(name, launched, began, seconds, correlation):
    yield event("cuda_runtime", "cudaLaunchKernel", launched, 0.01, args={"correlation": correlation})
    yield event("kernel", name, began, seconds, tid=7, args={"correlation": correlation})


def test_operators_count_without_nested_ones_except_attention():
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


def test_operators_are_not_counted_as_gpu_work():
    trace = {"traceEvents": [mark("step 7", 0, 20), event("cpu_op", "aten::mm", 0, 19)]}
    assert part_times(trace, on_gpu=True).seconds == {}


def test_kernels_count_by_launch_and_communication_when_exposed():
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


def test_the_profiled_step_of_median_length_counts():
    steps = ((0, 50, 5), (50, 10, 1), (60, 12, 2))
    events = [mark(f"step {number}", began, whole) for number, (began, whole, _) in enumerate(steps)]
    events += [event("cpu_op", "aten::mm", began + 1, seconds) for began, _, seconds in steps]
    times = part_times({"traceEvents": events}, on_gpu=False)
    assert (times.seconds, times.step_seconds) == (pytest.approx({"matrix products": 2}), 12)


class Recorded:
    """A profile that writes what it was given."""

    def __init__(self, content):
        self.content = content

    def export_chrome_trace(self, path):
        if self.content is None:
            raise OSError(28, "No space left on device")
        with gzip.open(path, "wb") as file:
            file.write(self.content)


@pytest.mark.parametrize("content", [None, b'{"traceEvents": [', b"{}", b'{"traceEvents": []}', b"\xff"])
def test_without_a_usable_trace_only_the_parts_are_missing(tmp_path, content):
    """Whatever the profiler makes of a device that it does not know, the timed steps are kept."""
    assert parts_of(Recorded(content), tmp_path, on_gpu=True).seconds == {}


def test_a_trace_is_read_from_the_result_folder(tmp_path):
    trace = {"traceEvents": [mark("step 7", 0, 20), event("cpu_op", "aten::mm", 0, 19)]}
    assert parts_of(Recorded(json.dumps(trace).encode()), tmp_path, on_gpu=False).seconds == {"matrix products": 19}
