"""Mutations of experts. Most would only make training a little worse, without an error."""

from tests.support.mutation import Mutation

PARITY = "tests/ranks/test_parity.py::test_equals_one_process_of_plain_torch"
ROUTER, BALANCE = "pretrain/model/router.py", "pretrain/engine/expert_balance.py"

EXPERTS = (
    Mutation(
        "expert-scale",
        "ZeRO-3 divides experts' gradients by the ranks that hold them, not by the data-parallel ranks",
        "pretrain/engine/optimizer/zero3.py",
        "layout.edp / layout.dp",
        "1.0",
        (f"{PARITY}[experts-zero3-dp2ep2-m3]",),
    ),
    Mutation(
        "expert-norm",
        "the norm counts replicas of experts at stage 0",
        "pretrain/engine/optimizer/gradients.py",
        "return (groups.expert_data.rank(), layout.edp) if replicated else (0, 1)",
        "return 0, 1",
        (f"{PARITY}[experts-zero0-tp2-sp-m3]",),
    ),
    Mutation(
        "expert-first",
        "ranks apply the experts of other ranks",
        "pretrain/model/experts.py",
        "first = group.rank() // etp * own",
        "first = (ep - 1) * own - group.rank() // etp * own",
        (f"{PARITY}[experts-zero1-dp2ep2-m3]",),
    ),
    Mutation(
        "router-not-summed",
        "each tensor-parallel rank updates the router by its own tokens",
        ROUTER,
        "self.weight.sequence_parallel = config.sequence_parallel",
        "self.weight.sequence_parallel = False",
        (f"{PARITY}[experts-zero3-tp2-sp-m3]",),
    ),
    Mutation(
        "balance-by-rank",
        "the balance loss sees only a rank's part of each sequence",
        ROUTER,
        "for group in self.groups:\n                mean_share",
        "for group in ():\n                mean_share",
        (f"{PARITY}[balanced_experts-zero3-tp2ep2-sp-m3]",),
    ),
    Mutation(
        "load-of-recomputation",
        "tokens are counted in the first pass of a recomputed layer, and elsewhere never",
        ROUTER,
        "if torch.is_grad_enabled():",
        "if not torch.is_grad_enabled():",
        (f"{PARITY}[balanced_experts-zero3-dp2ep2-m3-recompute.granularity=full]",),
    ),
    Mutation(
        "load-by-rank",
        "each rank moves the biases by its own tokens",
        BALANCE,
        "if group.size() > 1:",
        "if group.size() < 1:",
        (f"{PARITY}[balanced_experts-zero3-dp4ep2-m3]",),
    ),
    Mutation(
        "load-kept",
        "the loads of all steps move the biases, not those of the last",
        BALANCE,
        "            router.load.zero_()",
        "            pass",
        (f"{PARITY}[balanced_experts-zero1-m3]",),
    ),
    Mutation(
        "bias-of-a-skipped-step",
        "a step that was not applied moves the biases",
        BALANCE,
        "if biased and applied:",
        "if biased:",
        ("tests/ranks/test_experts.py::test_a_skipped_step_moves_no_bias[0]",),
    ),
    Mutation(
        "bias-in-the-weights",
        "the bias of the choice enters the weights of the outputs",
        "pretrain/model/expert_products.py",
        "weights = scores.gather(-1, chosen)",
        "weights = (scores + bias).gather(-1, chosen)",
        ("tests/unit/model/test_experts.py::test_the_bias_changes_the_choice_alone",),
    ),
)
