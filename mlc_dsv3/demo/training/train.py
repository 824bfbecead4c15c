"""Trains the demo model: python -m mlc_dsv3.demo.training.train --output DIR [--steps N] [--seed S] [--resume].

The folder holds the state while it learns (state.pt) and the finished checkpoint (checkpoint/). First attention
learns to look things up, with the shared experts alone, which is cheap; then the routed experts, the MTP layer and the
4-bit rounding join while the learning rate falls.
"""

import argparse
import os
import pathlib
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from mlc_dsv3.demo.chats import DEFAULT_MIX, EARLY_MIX, LATE_MIX
from mlc_dsv3.demo.questions import held_out_questions
from mlc_dsv3.demo.training.aid import Aid
from mlc_dsv3.demo.training.checkpoint import write_checkpoint
from mlc_dsv3.demo.training.config import DemoConfig
from mlc_dsv3.demo.training.data import Batch, BatchMaker
from mlc_dsv3.demo.training.evaluate import told_score
from mlc_dsv3.demo.training.model import DemoModel, causal_bias
from mlc_dsv3.demo.training.optimizer import make_optimizers
from mlc_dsv3.demo.training.parallel import average, launch
from mlc_dsv3.demo.training.tokenizer import train_tokenizer

MTP_WEIGHT = 0.2
BALANCE_SPEED = 0.005
SCORE_LIMITS = (40.0, 12.0)  # of content and of position
AID_WEIGHT = 0.3
MOMENTUM_WARMUP = 300


def learning_rate_factor(step: int, steps: int, decay_from: int, warmup: int = 40) -> float:
    """Warm-up, constant, then linear to zero from step `decay_from` on."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (steps - decay_from))


def losses(model: DemoModel, batch: Batch, with_mtp: bool) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a batch, and what to print: the losses of main model and MTP layer, and the drafts accepted."""
    bias = causal_bias(batch.documents)
    hidden = model(batch.tokens, batch.positions, bias)
    rows, columns = (batch.weights[:, 1:] > 0).nonzero(as_tuple=True)
    logits = model.lm_head(hidden[rows, columns])
    loss = _weighted_loss(logits, batch, rows, columns + 1)
    report = {"loss": loss.item()}
    if with_mtp:
        drafted = model.draft(hidden, batch.tokens.roll(-1, 1), batch.positions, bias)
        follows = (batch.weights[:, 2:] > 0) & (batch.documents[:, 2:] == batch.documents[:, :-2])
        rows2, columns2 = follows.nonzero(as_tuple=True)
        draft_logits = model.lm_head(drafted[rows2, columns2])
        mtp_loss = _weighted_loss(draft_logits, batch, rows2, columns2 + 2)
        chosen = torch.full_like(batch.tokens, -1)
        chosen[rows, columns + 1] = logits.argmax(-1)
        answers = batch.weights[rows2, columns2 + 2] == 1.0
        agree = (draft_logits.argmax(-1) == chosen[rows2, columns2 + 2])[answers]
        report |= {"mtp": mtp_loss.item(), "accepted": agree.float().mean().item()}
        loss = loss + MTP_WEIGHT * mtp_loss
    return loss, report


def _weighted_loss(logits: torch.Tensor, batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    weights = batch.weights[rows, columns]
    return (F.cross_entropy(logits, batch.tokens[rows, columns], reduction="none") * weights).sum() / weights.sum()


def train(rank: int, args: argparse.Namespace) -> None:
    """Runs the loop of one process; the first process reports, saves, and writes the checkpoint at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.output / "tokenizer.json"))
    model = DemoModel(DemoConfig())
    aid = Aid(tokenizer, model.c.hidden_size)
    optimizers = [*make_optimizers(model, args.muon_lr, args.adam_lr), torch.optim.AdamW(aid.parameters())]
    maker = BatchMaker(tokenizer, f"{args.seed}/{rank}")
    probe = held_out_questions(300, seed=7)
    step = seen = 0
    spent = 0.0
    state_file = args.output / "state.pt"
    if args.resume and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seen, spent = state["step"], state["seen"], state["spent"]
    if rank == 0:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {step}", flush=True)

    last, last_seen = time.monotonic(), seen
    while step < args.steps:
        factor = learning_rate_factor(step, args.steps, args.decay_from)
        for optimizer, rate in zip(optimizers, (args.muon_lr, args.adam_lr, args.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        optimizers[0].param_groups[0]["momentum"] = 0.85 + 0.1 * min(1.0, step / MOMENTUM_WARMUP)
        model.rounding.on = step >= args.rounding_from and step % 2 == 1
        routed = step >= args.routed_from
        model.set_routed(routed)
        size = args.batch_tokens // args.processes // (1 if routed else 2)
        mix = EARLY_MIX if step < args.early_steps else LATE_MIX if step >= args.late_from else DEFAULT_MIX
        batch = maker.batch(step, size, mix)
        loss, report = losses(model, batch, with_mtp=step >= args.mtp_from)
        if step < args.aid_steps:
            help_loss = aid.loss(model, batch)
            report["aid"] = help_loss.item()
            loss = loss + AID_WEIGHT * help_loss
        loss.backward()
        gates = [gate for gate in model.gates().values() if gate.weight.grad is not None]
        attentions = [layer.self_attn for layer in model.layers]
        average(
            [p.grad for p in (*model.parameters(), *aid.parameters()) if p.grad is not None]
            + [gate.load for gate in gates]
            + [attention.score_bounds for attention in attentions]
        )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for attention in attentions:
            attention.clip_scores(*SCORE_LIMITS)
        for gate in gates:
            gate.balance(BALANCE_SPEED * factor)
        model.rounding.on = False
        seen += args.processes * int((batch.documents > 0).sum())
        step += 1
        if rank > 0:
            continue
        if step % args.report_every == 0 or step == args.steps:
            now = time.monotonic()
            spent += now - last
            rate, last, last_seen = (seen - last_seen) / (now - last), now, seen
            numbers = " ".join(f"{name} {value:.3f}" for name, value in report.items())
            print(
                f"step {step} {numbers} tokens {seen:,} {rate:.0f} tokens/s {spent:.0f} s lr x{factor:.2f}", flush=True
            )
        if step % args.probe_every == 0 or step == args.steps:
            if routed:
                print(_loads(model), flush=True)
            scores = told_score(model, tokenizer, probe)
            print("held out: " + " ".join(f"{kind} {score:.2f}" for kind, score in scores.items()), flush=True)
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "seen": seen,
                "spent": spent,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            os.replace(state_file.with_suffix(".tmp"), state_file)
    if rank == 0:
        write_checkpoint(model, tokenizer, args.output / "checkpoint")
        print(f"{args.output / 'checkpoint'}: {step} steps, {seen:,} tokens, {spent:.0f} s", flush=True)


def _loads(model: DemoModel) -> str:
    """Each MoE layer's smallest and largest load over the mean load, minus 1, and its mean distance from 0."""
    parts = []
    for index, gate in model.gates().items():
        v = gate.violation()
        parts.append(f"layer {index} {v.min():+.2f} {v.max():+.2f} mean {v.abs().mean():.2f}")
    return "load over mean: " + "; ".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the state and of the checkpoint")
    parser.add_argument("--steps", type=int, default=3540)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the state in the output folder")
    parser.add_argument("--processes", type=int, default=2, help="processes of one thread each, which share a batch")
    parser.add_argument("--batch-tokens", type=int, default=5120)
    parser.add_argument(
        "--early-steps", type=int, default=1500, help="first steps, in which most chats are about stories"
    )
    parser.add_argument("--late-from", type=int, default=2850, help="step from which most chats are about numbers")
    parser.add_argument("--aid-steps", type=int, default=2850, help="steps with the help of aid.py")
    parser.add_argument("--routed-from", type=int, default=2400, help="step from which the routed experts take part")
    parser.add_argument("--muon-lr", type=float, default=0.004)
    parser.add_argument("--adam-lr", type=float, default=0.0015)
    parser.add_argument("--mtp-from", type=int, default=2400, help="step from which the MTP layer learns too")
    parser.add_argument(
        "--rounding-from", type=int, default=2650, help="step from which every second one is with 4-bit weights"
    )
    parser.add_argument("--decay-from", type=int, default=2400, help="step from which the learning rates fall to zero")
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--probe-every", type=int, default=100)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer_file = args.output / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(DemoConfig.vocab_size, seed=0).save(str(tokenizer_file))
    launch(train, args, args.processes, args.output.resolve() / "meeting")


if __name__ == "__main__":
    main()
