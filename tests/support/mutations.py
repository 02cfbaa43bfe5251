"""Mutations: each removes a piece of code whose absence causes no error, and names the tests that must fail then.

`python -m tests.mutations` tries them.
"""

from tests.support.evaluation_mutations import EVALUATION
from tests.support.exchange_mutations import EXCHANGE
from tests.support.expert_mutations import EXPERTS
from tests.support.muon_mutations import MUON
from tests.support.mutation import TEST_SECONDS, Mutation

__all__ = ["MUTATIONS", "TEST_SECONDS", "Mutation"]

PARITY = "tests/ranks/test_parity.py::test_equals_one_process_of_plain_torch"
SLOW = "tests/ranks/test_saver.py::test_a_slow_save_holds_the_step_it_started_at"
PADDING = "tests/ranks/test_parity.py::test_padding_of_the_vocabulary_changes_nothing"
SPARSE = "tests/ranks/test_param_gather.py::test_per_micro_batch_gathering_keeps_few_layers"
HELD = "tests/ranks/test_param_gather.py::test_per_step_gathering_gathers_once"
SUMS = "tests/ranks/test_precision.py::test_bf16_micro_batches_are_summed_in_fp32"
GROWN = "tests/ranks/test_precision.py::test_gradients_are_unscaled_by_the_scale_of_their_step"
NEAR = "tests/ranks/test_precision_of_layouts.py::test_16_bits_in_any_layout_stay_close_to_fp32"
OVERFLOW = "tests/ranks/test_precision_of_layouts.py::test_an_overflow_in_one_stage_skips_the_step_everywhere"
SEEN = "tests/ranks/test_any_layout.py::test_validation_and_logits_do_not_depend_on_the_layout"
DROPOUT = "tests/ranks/test_recompute.py::test_dropout_is_equal_on_replicas_and_differs_elsewhere"
RECOMPUTED = "tests/ranks/test_recompute.py::test_recomputed_activations_change_no_bit"
APART = "tests/ranks/test_documents.py::test_every_layout_matches_training_each_document_alone"
MEAN = "tests/ranks/test_loss_mask.py::test_the_mean_is_over_the_targets_that_count"
FILLED = "tests/ranks/test_loss_mask.py::test_padding_of_interleaved_micro_batches_does_not_count"
BLOCKS = "tests/ranks/test_chunked.py::test"
KEEPS = "tests/ranks/test_saved.py::test_a_layer_keeps_only_what_backward_reads"
WAITS = "tests/ranks/test_no_waiting.py::test_no_device_sync_between_first_forward_and_last_backward"
VIEW = "tests/unit/engine/test_device.py::test_any_view_is_pinned[one value for each row]"
AS_ON_A_CPU = "tests/ranks/test_pretend_engine.py::test_all_values_equal_the_cpus"
COUNTED = "tests/runs/test_data_parallel.py::test_processes_of_one_replica_count_their_batch_once"

GRADIENTS, ZERO = "pretrain/engine/optimizer/gradients.py", "pretrain/engine/zero.py"
ZERO0, ZERO3 = "pretrain/engine/optimizer/zero0.py", "pretrain/engine/optimizer/zero3.py"
OFFLOADED, BASE = "pretrain/engine/optimizer/offloaded.py", "pretrain/engine/optimizer/base.py"
PATCHES = "pretrain/engine/vendor_patches.py"
GROUPS, SPECS = "pretrain/distributed/groups.py", "pretrain/model/specs.py"
DEEPSPEED, PARAMETERS = "pretrain/engine/deepspeed_config.py", "pretrain/model/parameters.py"

MUTATIONS = (
    *EXCHANGE,
    *EXPERTS,
    *MUON,
    *EVALUATION,
    # Gradients that several ranks have parts of.
    Mutation(
        "tied-sum",
        "the two ends of the pipeline each update the tied embedding with their own gradient",
        GRADIENTS,
        "_all_reduce_flat(tied, groups.embedding, groups.device)",
        "pass",
        (f"{PARITY}[gpt-zero1-pp2-m3]",),
    ),
    Mutation(
        "tied-group",
        "ZeRO-1 and 2 divide a tied weight differently at each end, so shards of different sizes are summed",
        "pretrain/engine/optimizer/new.py",
        "(item[2] in tied) == alone and",
        "not alone and",
        (f"{PARITY}[gpt-zero1-pp2dp2-m3]",),
        seconds=40,
    ),
    Mutation(
        "partial-sum",
        "tensor-parallel ranks update norms and biases with the gradient of their own part of the sequence",
        GRADIENTS,
        "_all_reduce_flat(partial, groups.tensor_parallel, groups.device)",
        "pass",
        (f"{PARITY}[gpt-zero1-tp2pp2-sp-m3]",),
    ),
    Mutation(
        "norm-mark",
        "under sequence parallelism the norms are left out of that sum",
        SPECS,
        "parameter.sequence_parallel = config.sequence_parallel",
        "parameter.sequence_parallel = False",
        (f"{PARITY}[gpt-zero1-tp2pp2-sp-m3]",),
    ),
    Mutation(
        "qk-norm-sum",
        "the norms of queries and keys are left out of that sum without sequence parallelism",
        PARAMETERS,
        ' or ".q_layernorm." in name or ".k_layernorm." in name',
        "",
        (f"{PARITY}[llama_qk-zero1-tp2-m3]",),
    ),
    # The norm and the clip.
    Mutation(
        "tied-norm",
        "the norm counts the tied embedding twice",
        GRADIENTS,
        "(local.tied, int(local.is_copy), 2),",
        "",
        (f"{PARITY}[gpt-zero1-pp2-m3]",),
    ),
    Mutation(
        "replicated-norm",
        "the norm counts replicated parameters once per tensor-parallel rank",
        GRADIENTS,
        "(local.split is None, groups.tp_rank, layout.tp),",
        "",
        (f"{PARITY}[gpt-zero1-tp2-m3]",),
    ),
    Mutation(
        "replica-norm",
        "at stage 0 the norm counts each data-parallel replica",
        BASE,
        "self.grad_norm = global_norm(shards, self.stage.local, self.groups, replicated=self.replicated)",
        "self.grad_norm = global_norm(shards, self.stage.local, self.groups, replicated=False)",
        (f"{PARITY}[gpt-zero0-dp2-m3]",),
    ),
    Mutation(
        "stage-norm",
        "each stage clips by the norm of its own gradients, and steps where another one has an infinity",
        GRADIENTS,
        "dist.all_reduce(square, group=groups.world)",
        "dist.all_reduce(square, group=groups.tensor_parallel)",
        (f"{PARITY}[gpt-zero1-pp2-m3]", f"{OVERFLOW}[fp32-2-pp2-dp2-last]"),
        seconds=40,
    ),
    Mutation(
        "norm-per-group",
        "DeepSpeed gets the whole norm for each of its parameter groups",
        PATCHES,
        "self._norm if self._is_first else 0.0",
        "self._norm",
        (f"{PARITY}[gpt-zero1-dp2-m3]",),
    ),
    Mutation(
        "clip-at-0",
        "stage 0 does not clip",
        ZERO0,
        "if 0 < clip < norm else",
        "if False else",
        (f"{PARITY}[gpt-zero0-m3]",),
    ),
    # There is no mutation of the `mpu` that DeepSpeed gets. Its model-parallel rank and group only affect norms, which
    # ours replaces, and the overflow flag, which ours sets too because it is infinite on every rank. So wrong values
    # fail no test; `replicated-norm` and `stage-norm` test the same laws.
    # Micro-batches under a pipeline's schedule.
    Mutation(
        "backward-seen",
        "the second of two backward passes in a row reduces nothing",
        PATCHES,
        "optimizer.clear_backward_seen_flag()",
        "pass",
        (f"{PARITY}[gpt-zero2-pp2-m3]", f"{PARITY}[gpt-zero3-pp2-m3]"),
    ),
    Mutation(
        "backward-counts",
        "the second of two backward passes in a row frees no parameter",
        ZERO3,
        "also=self._counts.restore",
        "also=lambda: None",
        (f"{SPARSE}[gpt-per_micro_batch-shape1]",),
    ),
    Mutation(
        "stale-gradients",
        "interleaved chunks add to the gradients of the step before",
        ZERO3,
        "self.optimizer.grad_partitions_flat_buffer.zero_()",
        "pass",
        (f"{PARITY}[gpt-zero3-pp2vp2-m2]",),
    ),
    Mutation(
        "stale-offloaded-gradients",
        "interleaved chunks add to the offloaded gradients of the step before",
        OFFLOADED,
        "total.zero_()",
        "pass",
        (f"{PARITY}[gpt-zero2-pp2vp2-m2-offload.optimizer=cpu]",),
    ),
    Mutation(
        "held",
        "parameters are gathered again for each micro-batch although they should be kept",
        ZERO3,
        "gather_until_step(self.stage.local)",
        "pass",
        (f"{HELD}[gpt-per_micro_batch-shape1]",),
    ),
    Mutation(
        "held-mark",
        "parameters that were to be kept are freed by the first module that used them",
        "pretrain/engine/param_gather.py",
        "parameter.ds_active_sub_modules.add(GATHERED_UNTIL_STEP)",
        "pass",
        (f"{HELD}[gpt-per_micro_batch-shape1]",),
    ),
    Mutation(
        "slices-of-ranks",
        "the host starts an operation for each pair of a parameter and a rank when ZeRO-3 gathers",
        "pretrain/engine/param_gather.py",
        "parameter.all_gather_coalesced = gathers_together(init, parameter.all_gather_coalesced)",
        "pass",
        ("tests/ranks/test_dry_run.py::test_the_work_of_the_host_ignores_world_size[zero3-often]",),
    ),
    Mutation(
        "sum-not-mean",
        "ZeRO-3 sums gradients over data-parallel ranks instead of averaging them",
        "pretrain/engine/flat_collectives.py",
        "flat.div_(ranks)",
        "pass",
        (f"{PARITY}[gpt_odd-zero3-dp3-m4]",),
    ),
    Mutation(
        "let-go",
        "parameters stay gathered after a validation",
        ZERO3,
        "self.optimizer.empty_partition_cache()",
        "pass",
        (f"{SEEN}[gpt-tp2-pp2-dp2-sp-zero3]",),
    ),
    Mutation(
        "traces",
        "ZeRO-3 records in which order modules run, and asks all stages whether they agree",
        ZERO3,
        "fetch_without_traces(self.optimizer)",
        "pass",
        (f"{SEEN}[gpt-tp2-pp2-dp2-sp-zero3]",),
        seconds=40,
    ),
    Mutation(
        "paired-sends",
        "two interleaved stages swap activations and gradients",
        SPECS,
        "batch_p2p_comm=False",
        "batch_p2p_comm=True",
        (f"{PARITY}[gpt-zero1-pp2vp2-m2]",),
    ),
    # The loss.
    Mutation(
        "divided-twice",
        "the loss is divided by the number of micro-batches again",
        "pretrain/engine/schedule.py",
        "return losses.mean() / sharers, record",
        "return losses.mean() / sharers / 3, record",
        (f"{PARITY}[gpt-zero1-m3]",),
    ),
    Mutation(
        "totals",
        "the loss and its tokens are counted on every tensor-parallel rank",
        ZERO,
        "totals.zero_()",
        "pass",
        (f"{SEEN}[gpt-tp2-pp2-zero0]",),
    ),
    Mutation(
        "filled-turns",
        "micro-batches that complete a turn of interleaved stages count in a validation",
        ZERO,
        "torch.zeros_like(parts[-1][1])",
        "parts[-1][1]",
        (FILLED,),
    ),
    Mutation(
        "filled-micro-batch",
        "samples that fill up the last micro-batch of a validation count",
        ZERO,
        "functional.pad(mask, (0, 0, 0, missing))",
        "functional.pad(mask, (0, 0, 0, missing), value=1)",
        (FILLED,),
    ),
    Mutation(
        "padding-of-parts",
        "tensor-parallel ranks give probability to rows that pad the vocabulary",
        "pretrain/model/gpt.py",
        "if real < logits.shape[-1]:",
        "if False:",
        (f"{PARITY}[llama-zero1-tp2-m3]",),
    ),
    Mutation(
        "padding",
        "one rank gives probability to rows that pad the vocabulary",
        "pretrain/model/gpt.py",
        "flat = logits[..., :real]",
        "flat = logits",
        (PADDING,),
    ),
    # 16 bits.
    Mutation(
        "loss-scale",
        "fp16 gradients are computed without the loss scale that they are divided by",
        ZERO,
        "stage.config.grad_scale_func = self.optimizer.scale_loss",
        "pass",
        (f"{NEAR}[fp16-4-shape3]",),
    ),
    Mutation(
        "grown-scale",
        "the step after which the loss scale grows takes its gradients for half of what they are",
        PATCHES,
        "optimizer._update_scale = lambda *_: None",
        "pass",
        (f"{GROWN}[1-0.0]", f"{GROWN}[3-0.0]"),
    ),
    Mutation(
        "masters-rounded",
        "at stage 0 the 16-bit parameters stay what they were at the start",
        ZERO0,
        "torch._foreach_copy_(parameters, masters)",
        "pass",
        (f"{NEAR}[bf16-4-shape2]",),
    ),
    Mutation(
        "scaled-already",
        "DeepSpeed refuses the scaled gradients that an inner stage receives",
        PATCHES,
        "engine._manual_backward_expected = True",
        "pass",
        (f"{NEAR}[fp16-4-shape3]",),
    ),
    Mutation(
        "parameter-sums",
        "micro-batches are summed in 16 bits in each parameter",
        ZERO,
        "parameter.grad_dtype = torch.float32",
        "pass",
        (f"{SUMS}[0-2]", f"{SUMS}[1-2]"),
    ),
    Mutation(
        "share-sums",
        "stage 3 sums its shares in 16 bits",
        DEEPSPEED,
        'config["data_types"] = {"grad_accum_dtype": "fp32"}',
        "pass",
        (f"{SUMS}[3-2]",),
    ),
    Mutation(
        "rank-sums",
        "data-parallel ranks are summed in 16 bits",
        DEEPSPEED,
        'config["communication_data_type"] = "fp32"',
        "pass",
        (f"{SUMS}[0-2]", f"{SUMS}[1-2]", f"{SUMS}[2-2]"),
    ),
    Mutation(
        "bucket",
        "the buffer for the reduction rounds the sums to 16 bits",
        DEEPSPEED,
        '"contiguous_gradients": not sums_in_fp32(engine)',
        '"contiguous_gradients": True',
        (f"{SUMS}[1-2]",),
    ),
    # What the host asks of a device.
    Mutation(
        "clock",
        "DeepSpeed waits for the device before each forward pass",
        DEEPSPEED,
        '"timers": {"throughput": {"enabled": False}},',
        "",
        (f"{WAITS}[gpt-zero0]", f"{WAITS}[llama-zero2-bf16]"),
    ),
    # The parts of the model, and what is random in it.
    Mutation(
        "gate-and-up",
        "SwiGLU's two projections are cut as if they were one matrix",
        PARAMETERS,
        "matrices = 2 if _is_gate_and_up(parameter.name, model) else 1",
        "matrices = 1",
        (
            f"{PARITY}[llama-zero1-tp2-m3]",
            "tests/unit/model/test_rows.py::test_parts_are_those_of_tensor_parallelism"
            "[llama-decoder.layers.0.mlp.linear_fc1.weight-shape2-0-2]",
        ),
    ),
    Mutation(
        "decay",
        "under ZeRO-3, which leaves parameters without a shape, no weight is decayed",
        "pretrain/model/gpt.py",
        "(local.name, local.shape, parameter)",
        "(local.name, parameter.shape, parameter)",
        (f"{PARITY}[gpt-zero3-dp2-m3]",),
    ),
    Mutation(
        "bias-copy",
        "the backward pass of a recomputed feed-forward block never ends",
        "pretrain/model/feed_forward.py",
        "None if bias is None else bias.clone()",
        "bias",
        (f"{RECOMPUTED}[one-both]",),
        seconds=40,
    ),
    # Blocks of the vocabulary.
    Mutation(
        "block-sums",
        "a token's probabilities are those among the last block of the vocabulary",
        "pretrain/model/chunked_cross_entropy.py",
        "sums = torch.logaddexp(sums, log_sums(logits, logits.shape[1], passes))",
        "sums = log_sums(logits, logits.shape[1], passes)",
        (f"{BLOCKS}_losses_and_gradients_equal_plain[40-torch.float32]",),
    ),
    Mutation(
        "block-hidden",
        "hidden states get the gradients of one rank's columns of the vocabulary",
        "pretrain/model/chunked_cross_entropy.py",
        "dist.all_reduce(of_states, group=columns.group)",
        "pass",
        (f"{BLOCKS}_the_vocabulary_may_be_split[torch.float32-whole-2]",),
    ),
    # Memory.
    Mutation(
        "kept-values",
        "a view of the values keeps the whole matrix of queries, keys and values",
        "pretrain/model/self_attention.py",
        "value = value.contiguous()",
        "pass",
        (f"{KEEPS}[llama]",),
    ),
    Mutation(
        "kept-groups",
        "copied queries are kept beside the matrix that they are copied from",
        "pretrain/model/self_attention.py",
        "1 in (groups, per_group)",
        "True",
        (f"{KEEPS}[gpt-grouped]",),
    ),
    Mutation(
        "dropout-of-replicas",
        "data-parallel ranks drop the same",
        GROUPS,
        "seed + 10_000 * dp_rank + ",
        "seed + ",
        (DROPOUT,),
    ),
    Mutation(
        "dropout-of-stages",
        "pipeline stages drop the same",
        GROUPS,
        " + 100 * pp_rank",
        "",
        (DROPOUT,),
    ),
    Mutation(
        "batch-hash",
        "the record of a batch depends on the number of ranks that share it",
        "pretrain/training/assembly.py",
        "return self.groups.counts_samples",
        "return True",
        (f"{COUNTED}[tp]",),
    ),
    # What a target sees, and how much it counts.
    Mutation(
        "documents-apart",
        "documents get positions of their own and see each other all the same",
        ZERO,
        "starts = None if self.eod_id is None else document_starts(inputs, self.eod_id)",
        "starts = None",
        (f"{APART}[llama-zero2-pp2-m3-document_mask=true-recompute.granularity=full]",),
    ),
    Mutation(
        "documents-positions",
        "documents are kept apart and learned positions run through all of a sample",
        "pretrain/engine/schedule.py",
        "return positions_in_documents(tokens, self.eod_id)",
        "return positions_of(tokens)",
        (f"{APART}[gpt-zero1-tp2-sp-m3-document_mask=true]",),
    ),
    Mutation(
        "mask-of-ranks",
        "targets count more on a data-parallel rank with more padding",
        ZERO,
        "dist.all_reduce(mean, group=self.groups.data_parallel)",
        "mean *= self.groups.layout.dp",
        (f"{MEAN}[gpt-zero2-dp3-m4]",),
    ),
    Mutation(
        "plain-before-pinned",
        "a validation on a GPU ends with an error: its mask is an expanded view",
        "pretrain/engine/device.py",
        "narrow.contiguous().pin_memory()",
        "narrow.pin_memory()",
        (VIEW, f"{AS_ON_A_CPU}[gpt-zero0]"),
    ),
    Mutation(
        "norm-where-collectives-are",
        "a rank with nothing to count brings a number of the host's to the norm of all, which NCCL refuses",
        GRADIENTS,
        "        square = square.to(groups.device)",
        "        pass",
        (f"{AS_ON_A_CPU}[all_sorts-zero2-offload-dp2]",),
    ),
    # Saving while training continues.
    Mutation(
        "update-waits",
        "an update changes tensors that a save is still reading",
        "pretrain/checkpoint/saver.py",
        "self.engine.before_next_update(save.wait_until_read)",
        "pass",
        (f"{SLOW}[2-values1]", f"{SLOW}[4-values4]"),
    ),
    Mutation(
        "damaged-counted",
        "a damaged checkpoint takes the place of a whole one when old ones are pruned",
        "pretrain/checkpoint/retention.py",
        "if looks_whole(name) if whole is None else whole:",
        "if True:",
        ("tests/unit/checkpoint/test_retention.py::test_keep_last_counts_only_whole_checkpoints",),
    ),
    Mutation(
        "trunk-pruned",
        "the checkpoint that branches continue is deleted once newer ones are saved",
        "pretrain/checkpoint/retention.py",
        "return step in self.keep_steps or (",
        "return (",
        ("tests/unit/checkpoint/test_retention.py::test_named_steps_are_never_deleted",),
    ),
    Mutation(
        "branch-of-other-settings",
        "a run continues a checkpoint that was trained with another batch or optimizer",
        "pretrain/checkpoint/branch.py",
        'each.kind != "safe" and not each.key.startswith(FREE)',
        "False",
        ("tests/runs/test_branch.py::test_a_branch_ends_as_the_whole_run_bit_for_bit",),
    ),
    Mutation(
        "transfers-for-free",
        "planned pipelines send between stages in no time",
        "pretrain/planner/time/pipeline.py",
        "seconds += transfer",
        "seconds += 0.0",
        ("tests/unit/planner/time/test_pipeline.py::test_transfers_lengthen_a_step",),
    ),
    Mutation(
        "products-without-waves",
        "a planned product fills all multiprocessors, whatever its shape",
        "pretrain/planner/time/products.py",
        "waves = -(-tiles * split // sms)",
        "waves = tiles * split / sms",
        ("tests/unit/planner/time/test_products.py::test_a_wave_more_takes_longer",),
    ),
    Mutation(
        "interval-without-bias",
        "an interval of a skewed estimate is too high or too low",
        "pretrain/scaling/laws/bootstrap.py",
        "shift, tail = 2 * stats.norm.ppf(below), stats.norm.ppf((1 + level) / 2)",
        "shift, tail = 0.0, stats.norm.ppf((1 + level) / 2)",
        ("tests/unit/scaling/test_study.py::test_the_bias_corrected_interval_of_a_shifted_sample",),
    ),
    Mutation(
        "multiplier-ignores-cost",
        "a change that makes each token dearer is credited with the compute that it costs",
        "pretrain/scaling/laws/compare.py",
        "spent = np.log(cells.cost * cells.parameters * cells.tokens / cells.flops)",
        "spent = 0.0",
        ("tests/unit/scaling/test_compare.py::test_a_variant_that_costs_more_compute_is_worth_less",),
    ),
    Mutation(
        "manifest-unproved",
        "a checkpoint's manifest is read without its digest",
        "pretrain/checkpoint/manifest.py",
        "if len(own) != len(_BLANK) or hashlib.sha256(_with_digest(content, own, _BLANK)).hexdigest() != own:",
        "if len(own) != len(_BLANK):",
        ("tests/unit/checkpoint/test_bit_flips.py::test_every_bit_of_the_manifest_counts",),
    ),
    # Layers that differ.
    Mutation(
        "layers-counted-by-stage",
        "which layers have windows and rotary positions depends on the cut of the pipeline",
        "pretrain/model/specs.py",
        "for number in layers]",
        "for number in range(len(layers))]",
        (
            f"{PARITY}[llama-zero1-pp2vp2-m2-no_rope_every=3]",
            f"{PARITY}[llama-zero3-pp2vp2-m2-window=5-full_attention_every=3]",
        ),
    ),
    Mutation(
        "cache-without-windows",
        "texts with a cache see more tokens than the model was trained with",
        "pretrain/engine/text_cache.py",
        "owner.core_attention.window, cache",
        "None, cache",
        ("tests/ranks/test_extend.py::test_cached_equals_whole[windows-4-layout3-True]",),
    ),
    Mutation(
        "decoder-without-windows",
        "generated text sees more tokens than the model was trained with",
        "pretrain/generation/decoder.py",
        "placed, self.model.window_of(number))",
        "placed)",
        ("tests/ranks/test_decoder.py::test_cached_equals_whole[windows-False]",),
    ),
    # Samples that ranks share.
    Mutation(
        "context-loss-undivided",
        "gradients are multiplied by the number of ranks that share samples, which clipping hides",
        "pretrain/engine/schedule.py",
        "losses.mean() / sharers, record",
        "losses.mean(), record",
        (f"{PARITY}[gpt-zero1-cp2-m3]",),
    ),
    Mutation(
        "context-positions-in-a-row",
        "rotary positions are those of consecutive parts, and tokens those of the first and the last",
        "pretrain/model/rotary.py",
        "self._context.own(self._whole(length)[:, :length])",
        "self._whole(length)[:, :length].chunk(self._context.size, 1)[self._context.rank]",
        (f"{PARITY}[llama_qk-zero3-tp2cp2-sp-m3-document_mask=true]",),
    ),
    Mutation(
        "context-labels-within-parts",
        "the last token of a part has the first one of the same rank's next part as its label",
        "pretrain/engine/schedule.py",
        "labels=own(labels)",
        "labels=own(inputs).roll(-1, 1)",
        (f"{PARITY}[gpt-zero1-cp2-m3]",),
    ),
    Mutation(
        "context-learned-positions",
        "each rank counts the positions of its tokens from 0",
        "pretrain/engine/schedule.py",
        "own(self._positions(inputs))",
        "self._positions(own(inputs))",
        (f"{PARITY}[gpt-zero1-cp2-m3]",),
    ),
    Mutation(
        "context-gradients-of-others",
        "keys and values get the gradients of their own rank's queries alone",
        "pretrain/model/context.py",
        "dist.reduce_scatter_tensor(own, by_rank, group=context.group)",
        "own.copy_(by_rank.chunk(context.size)[context.rank])",
        (f"{PARITY}[gpt-zero1-cp2-m3]",),
    ),
    Mutation(
        "context-samples-counted-twice",
        "each rank that shares samples counts them",
        "pretrain/distributed/groups.py",
        "self.tp_rank == self.pp_rank == self.cp_rank == 0",
        "self.tp_rank == self.pp_rank == 0",
        (f"{COUNTED}[cp]",),
    ),
    Mutation(
        "copies-shared-out",
        "every data-parallel rank at stage 0 writes all of what all hold",
        GRADIENTS,
        "(replicated, groups.dp_rank, layout.dp),",
        "",
        ("tests/ranks/test_saver.py::test_everything_is_written_once_and_copies_are_shared[3-values0]",),
    ),
)
