"""Hugging Face's Trainer on a Llama of our shape and our batches, one step at a time, for engine_overhead."""

import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from pretrain.config.derived import padded_vocab_size
from pretrain.config.run import RunConfig
from pretrain.model.size import count_parameters


class HfTrainer:
    """`transformers.Trainer` in a thread, which takes a step on request and then waits.

    Attention by torch's SDPA, fused AdamW, clipping; on a GPU the whole model is compiled. One process, no DDP.
    """

    def __init__(self, config: RunConfig, dataset: PackedDataset, device: torch.device) -> None:
        """Raises SystemExit if the configuration is not a Llama: positions, norm, activation and biases."""
        import transformers

        model = config.model
        style = (model.position, model.norm, model.activation, model.bias, model.qk_norm)
        if style != ("rope", "rmsnorm", "swiglu", False, False):
            raise SystemExit(f"--hf: {model.name} is not a Llama; take model=tiny_llama, llama_1b or another of them")
        vocab_size = dataset.manifest.tokenizer.vocab_size
        of_llama = transformers.LlamaConfig(
            vocab_size=padded_vocab_size(model, vocab_size, tp=1),
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.kv_heads,
            head_dim=model.head_size,
            max_position_embeddings=model.seq_length,
            rms_norm_eps=model.norm_eps,
            tie_word_embeddings=model.tie_embeddings,
            attn_implementation="sdpa",
            use_cache=False,
        )
        llama = transformers.LlamaForCausalLM(of_llama)
        own, theirs = count_parameters(model, vocab_size), sum(p.numel() for p in llama.parameters())
        padding = (of_llama.vocab_size - vocab_size) * model.hidden_size * (1 if model.tie_embeddings else 2)
        assert theirs == own.total + padding, f"{theirs} parameters there, {own.total} and {padding} of padding here"
        self._go, self._done, self._end = threading.Semaphore(0), threading.Semaphore(0), False
        self._fault: BaseException | None = None
        micro = config.train.micro_batch_size
        self._folder = tempfile.TemporaryDirectory()
        # By these Accelerate would take our process group for its own, and wrap the model.
        place = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
        arguments = transformers.TrainingArguments(
            output_dir=self._folder.name,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.train.global_batch_size // micro,
            max_steps=10**6,
            optim="adamw_torch_fused",
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=config.optim.clip_grad_norm,
            weight_decay=config.optim.weight_decay,
            bf16=config.engine.precision == "bf16",
            fp16=config.engine.precision == "fp16",
            torch_compile=device.type == "cuda",
            use_cpu=device.type == "cpu",
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        )
        handing_over = _handing_over(transformers.TrainerCallback, self._wait)
        self._trainer: Any = transformers.Trainer(
            model=llama, args=arguments, train_dataset=_Samples(config, dataset), callbacks=[handing_over]
        )
        os.environ.update(place)
        self._trainer.remove_callback(transformers.PrinterCallback)
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        self._end = True
        self._go.release()
        self._thread.join()
        self._folder.cleanup()

    def _train(self) -> None:
        torch.set_num_threads(self._threads)
        self._go.acquire()
        try:
            self._trainer.train()
        except BaseException as error:
            self._fault = error
        self._done.release()

    def _wait(self) -> bool:
        """After a step, until the next is asked for; whether that was the last."""
        self._done.release()
        self._go.acquire()
        return self._end


def _handing_over(base: Any, wait: Any) -> Any:
    class HandingOver(base):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = wait()

    return HandingOver()


class _Samples(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Ours, in our order; their model shifts the labels itself."""

    def __init__(self, config: RunConfig, dataset: PackedDataset) -> None:
        self.config, self.dataset = config, dataset

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        size = self.config.train.global_batch_size
        for batch in train_batches(self.dataset, seed=1, global_batch_size=size, rank=0, size=1, position=0):
            for tokens in batch.tokens[:, :-1]:
                yield {"input_ids": tokens, "labels": tokens}
