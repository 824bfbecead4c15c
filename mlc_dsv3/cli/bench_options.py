"""Which options of `mlc_dsv3 bench` go together: each of its measurements takes some and leaves out others."""

from __future__ import annotations

import argparse

from mlc_dsv3.errors import UserError


def check_together(parsed: argparse.Namespace) -> None:
    """UserError for options that are not for the measurement that is asked for, or that lack another."""
    if parsed.random_weights != (parsed.model_config is not None):
        raise UserError("--model-config and --random-weights go together; a checkpoint or artifact needs neither")
    if parsed.model and parsed.model_config:
        raise UserError("--model-config names the model; leave MODEL out")
    if parsed.quality and (parsed.model or parsed.model_config):
        raise UserError("--quality measures the demo model; leave the model out")
    if parsed.quality and parsed.context_window:
        raise UserError("--quality asks the demo in its own context window; leave --context-window out")
    if parsed.quality and parsed.plot:
        raise UserError("--plot draws speed, and --quality prints tables; leave one of them out")
    if parsed.questions < 1:
        raise UserError(f"--questions is {parsed.questions}; it must be at least 1")
    _check_speculative(parsed)
    _check_experts(parsed)
    _check_attention(parsed)


def _check_speculative(parsed: argparse.Namespace) -> None:
    from mlc_dsv3.runtime.speculation import speculation

    if parsed.acceptance is not None:
        if not parsed.speculative:
            raise UserError("--acceptance is of the drafts of --speculative; leave it out")
        if not 0 <= parsed.acceptance <= 1:
            raise UserError(f"--acceptance is {parsed.acceptance}; it is a share, from 0 to 1")
    if parsed.prompts and not parsed.speculative:
        raise UserError("--prompts are for --speculative; leave them out")
    if parsed.prompts and parsed.random_weights:
        raise UserError("--prompts need a tokenizer, which random weights do not come with; leave them out")
    if not parsed.speculative:
        return
    for option in ("versus", "quality", "plot", "profile", "context_window"):
        if getattr(parsed, option):
            raise UserError(f"--speculative measures drafts alone; leave --{option.replace('_', '-')} out")
    for mode in parsed.speculative.split(","):
        if mode == "off":
            raise UserError("--speculative is off; it takes numbers of drafts, beside which none is measured anyway")
        speculation(mode, has_mtp=True)


def _check_experts(parsed: argparse.Namespace) -> None:
    if not parsed.experts:
        return
    if parsed.random_weights:
        raise UserError("--experts reads a text with a real model; leave --random-weights out")
    for option in ("versus", "quality", "profile", "speculative"):
        if getattr(parsed, option):
            raise UserError(f"--experts looks at routers alone; leave --{option} out")


def _check_attention(parsed: argparse.Namespace) -> None:
    if not parsed.attention:
        if parsed.versus == "torch":
            raise UserError("--versus torch is of attention alone; give --attention, too")
        return
    if parsed.versus == "llama.cpp":
        raise UserError("--versus llama.cpp measures whole models; beside --attention it is torch")
    if not parsed.model_config:
        raise UserError("--attention takes no weights but random ones: --model-config FILE --random-weights")
    for option in ("quality", "plot", "profile", "speculative", "experts", "context_window"):
        if getattr(parsed, option):
            raise UserError(f"--attention measures one kernel alone; leave --{option.replace('_', '-')} out")
