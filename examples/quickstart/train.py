"""Trains the quickstart model: a small Qwen3.5-MoE on Jane Austen's novels.

    python train.py --data DIR --out DIR

DIR holds the novels as .txt files; emma.txt is held out. Writes a Hugging Face checkpoint
(bfloat16) to OUT/dense, made of the weights that did best on the held-out novel. Interrupted,
it goes on from the last saved step.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import network
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from corpus import Score, read_novels, token_bytes, train_tokenizer
from dense_checkpoint import as_stored, export
from network import LanguageModel, ModelConfig
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained; lengths in tokens."""

    steps: int = 1800
    batch: int = 12  # over all workers
    context: int = 256
    peak_rate: float = 2e-3
    final_rate: float = 5e-5
    warmup: int = 200
    weight_decay: float = 0.1
    dropout: float = 0.1
    balance_weight: float = 0.01
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 250
    evaluation_windows: int = 120  # of the held-out novel, while training

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to the final rate."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        span = self.peak_rate - self.final_rate
        return self.final_rate + span * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Job:
    """What every worker is given. text and held_out [tokens], sizes [vocabulary] in bytes."""

    config: TrainConfig
    text: Tensor
    held_out: Tensor
    sizes: Tensor
    folder: Path
    workers: int
    threads: int
    compiled: bool


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts in a row, each ended by the end-of-text token (id 0): [tokens]"""
    ids = ([*tokenizer.encode(text).ids, 0] for text in texts)
    return torch.tensor([token for text in ids for token in text])


def batches(tokens: Tensor, config: TrainConfig, start: int) -> Iterator[Tensor]:
    """Endless batches [batch, context + 1] from batch number `start` on.

    Each epoch cuts the text at another offset and shuffles the pieces, both by the epoch's
    own seed: a resumed run sees what it would have seen.
    """
    width = config.context
    per_epoch = ((len(tokens) - 1 - width) // width) // config.batch
    number = start
    while True:
        epoch, first = divmod(number, per_epoch)
        dice = torch.Generator().manual_seed(config.seed * 1000 + epoch)
        offset = int(torch.randint(width, (1,), generator=dice))
        pieces = tokens[offset:].unfold(0, width + 1, width)
        order = torch.randperm(per_epoch * config.batch, generator=dice)
        for rows in order.view(per_epoch, -1)[first:]:
            yield pieces[rows]
        number = (epoch + 1) * per_epoch


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    tokens: Tensor,
    sizes: Tensor,
    config: TrainConfig,
    limit: int | None = None,
) -> Score:
    """Scores windows of `context` tokens, no overlap; a window's first token is not scored.

    tokens [T]; sizes [vocabulary], the bytes of each token.
    """
    model.eval()
    context = config.context
    windows = tokens[: len(tokens) // context * context].view(-1, context)[:limit]
    nats = 0.0
    for rows in windows.split(8):
        logits, _ = model(rows[:, :-1])
        nats += cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    model.train()
    scored = windows[:, 1:]
    return Score(nats, scored.numel(), int(sizes[scored].sum()))


def make_optimizer(model: LanguageModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, decays) are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.95), fused=True)


def compile_parts() -> None:
    """Compiles what has fixed shapes; the routed experts have not."""
    network.gated_delta_rule = torch.compile(network.gated_delta_rule, dynamic=False)
    for part in (network.GatedDeltaNet, network.Attention, network.SwiGLU, network.RMSNorm):
        part.forward = torch.compile(part.forward, dynamic=False)


def save_atomically(value: object, path: Path) -> None:
    """`torch.save` under a temporary name, then a rename."""
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def average_gradients(model: LanguageModel, workers: int) -> None:
    """Replaces each worker's gradients by their mean."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / workers).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train_step(
    model: LanguageModel,
    optimizer: torch.optim.AdamW,
    rows: Tensor,
    workers: int,
    config: TrainConfig,
) -> tuple[float, float]:
    """One step over this worker's rows [n, context + 1]; returns its losses."""
    logits, balance = model(rows[:, :-1])
    loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad()
    (loss + config.balance_weight * balance).backward()
    if workers > 1:
        average_gradients(model, workers)
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return loss.item(), balance.item()


def train(rank: int, job: Job) -> None:
    """One worker's training; worker 0 scores, reports and saves.

    Keeps last.pt (to resume) and best.pt (the weights best on the held-out novel).
    """
    config = job.config
    torch.set_num_threads(job.threads)
    torch.manual_seed(config.seed)
    model = LanguageModel(ModelConfig(), config.dropout)
    torch.manual_seed(config.seed + 1 + rank)  # each worker drops out otherwise
    if job.workers > 1:
        meeting = f"file://{job.folder.resolve() / 'meeting'}"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=job.workers)
    if job.compiled:
        compile_parts()
    optimizer, step, best = make_optimizer(model, config), 0, math.inf
    if (job.folder / "last.pt").exists():
        saved = torch.load(job.folder / "last.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, best = saved["step"], saved["best"]
    began, losses = time.monotonic(), []
    for batch in itertools.islice(batches(job.text, config, step), config.steps - step):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        rows = batch[rank :: job.workers]
        losses.append(train_step(model, optimizer, rows, job.workers, config))
        step += 1
        if rank == 0 and step % 50 == 0:
            loss, balance = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            speed = len(losses) * batch[:, 1:].numel() / (time.monotonic() - began)
            print(
                f"step {step}: loss {loss:.3f}, balance {balance:.3f}, {speed:.0f} tokens/s",
                flush=True,
            )
            began, losses = time.monotonic(), []
        if rank == 0 and (step % config.evaluate_every == 0 or step == config.steps):
            best = keep_checkpoints(model, optimizer, step, best, job)
            began = time.monotonic()


def keep_checkpoints(
    model: LanguageModel, optimizer: torch.optim.AdamW, step: int, best: float, job: Job
) -> float:
    """Scores the held-out text and saves; returns the best perplexity so far."""
    score = evaluate(model, job.held_out, job.sizes, job.config, job.config.evaluation_windows)
    if score.perplexity < best:
        best = score.perplexity
        save_atomically(model.state_dict(), job.folder / "best.pt")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save_atomically(state | {"step": step, "best": best}, job.folder / "last.pt")
    print(f"step {step}: held-out {score}, best {best:.2f}", flush=True)
    return best


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the novels")
    parser.add_argument("--out", type=Path, required=True, help="for checkpoints and the result")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each batch")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    return parser.parse_args()


def main() -> None:
    """Reads, trains, exports, and scores what was exported on the whole held-out novel."""
    arguments = parse_arguments()
    config, model_config = TrainConfig(steps=arguments.steps), ModelConfig()
    novels, held_out_novel = read_novels(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "meeting").unlink(missing_ok=True)
    tokenizer = train_tokenizer(novels, model_config.vocab_size)
    job = Job(
        config=config,
        text=encode(tokenizer, novels),
        held_out=encode(tokenizer, [held_out_novel]),
        sizes=torch.tensor(token_bytes(tokenizer)),
        folder=arguments.out,
        workers=arguments.workers,
        threads=arguments.threads,
        compiled=not arguments.no_compile,
    )
    print(f"{len(job.text):,} tokens of text, {len(job.held_out):,} held out", flush=True)
    if job.workers > 1:
        processes.spawn(train, (job,), nprocs=job.workers)
    else:
        train(0, job)
    best = torch.load(job.folder / "best.pt", weights_only=True)
    weights = {name: as_stored(name, value) for name, value in best.items()}
    export(weights, tokenizer, model_config, job.folder / "dense")
    model = LanguageModel(model_config)
    model.load_state_dict(weights)
    score = evaluate(model, job.held_out, job.sizes, config)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"exported {count:,} parameters: held-out {score}")


if __name__ == "__main__":
    main()
