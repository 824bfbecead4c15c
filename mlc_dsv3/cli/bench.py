"""`mlc_dsv3 bench`: speed beside the memory's limit, and the demo's quality in each quantization."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc_dsv3.cli.arguments import add_cache_dtype, add_context_window, add_ignore_config_field, add_no_mtp
from mlc_dsv3.cli.bench_options import check_together
from mlc_dsv3.cli.output import print_json, print_table, size
from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    from mlc_dsv3.bench.drafted import Chats
    from mlc_dsv3.bench.settings import BenchSettings
    from mlc_dsv3.bench.subject import Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    from mlc_dsv3.bench.extras import PLOT, VERSUS

    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or org/name (the demo model)")
    parser.add_argument("--model-config", metavar="FILE", help="bench this config.json with --random-weights")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="no checkpoint: an artifact of random weights, which is kept in the cache folder",
    )
    parser.add_argument(
        "--quantization", metavar="NAMES", help="one or more, with commas between (the target's default)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="where to run; `mlc_dsv3 devices` lists devices (auto: cpu)"
    )
    add_context_window(parser, help="cache N tokens for each sequence, as chat would (what is measured)")
    add_cache_dtype(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    parser.add_argument("--prefill", type=int, default=512, metavar="N", help="prompt tokens to measure with (512)")
    parser.add_argument("--decode", type=int, default=64, metavar="N", help="tokens to decode one by one (64)")
    parser.add_argument("--depth", default="0", metavar="N,N", help="tokens cached before each measurement (0)")
    parser.add_argument(
        "--batch", default="1", metavar="N,N", help="sequences to decode at once, each at the depth (1)"
    )
    parser.add_argument(
        "--verify", default="2", metavar="N,N", help="rows of steps that verify drafts, beside decoding (2; 0: none)"
    )
    parser.add_argument(
        "--speculative",
        metavar="N,N",
        help="decode with so many drafts of the MTP layer (1 to 4, or auto) and without, in turns; nothing else",
    )
    parser.add_argument(
        "--acceptance",
        type=float,
        metavar="P",
        help="with --speculative: take this share of drafts as right, whatever the model says, as of random weights",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="with --speculative: answer these, a message a line (-: standard input); by default the demo answers its "
        "held-out questions, and other models go on with random tokens",
    )
    parser.add_argument(
        "--experts",
        metavar="FILE",
        help="how evenly the text of FILE (-: standard input) loads each layer's experts, with the routers' correction "
        "bias and without; nothing else; --plot draws it",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="prefills, and turns with --versus (3)")
    parser.add_argument("--profile", action="store_true", help="time and bytes of each kernel, in a pass of its own")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw speed and roofline; needs {PLOT}")
    parser.add_argument(
        "--versus",
        metavar="PEER",
        help=f"llama.cpp: measure it in turns with us on a random GGUF of the same shape; needs {VERSUS}; torch: with "
        "--attention, PyTorch's attention over the same latents",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="one layer's attention alone, of --batch sequences at --depth, beside what memory and arithmetic allow; "
        "nothing else",
    )
    parser.add_argument(
        "--quality", action="store_true", help="the demo's held-out questions and divergence from q0f32, too"
    )
    parser.add_argument("--questions", type=int, default=2000, metavar="N", help="how many with --quality (2000)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a measurement")
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Measure and print tables or JSON."""
    settings = _settings(parsed)
    quantizations = [name for name in (parsed.quantization or "").split(",") if name]
    if parsed.quality:
        _quality(parsed, quantizations, settings)
        return
    if parsed.experts:
        _experts(parsed, quantizations, settings)
        return
    if parsed.speculative:
        _drafted(parsed, quantizations, settings)
        return
    if parsed.attention:
        _attention(parsed, quantizations, settings)
        return
    results = _speed(parsed, quantizations, settings)
    if parsed.json:
        print_json(results)
    else:
        from mlc_dsv3.cli.bench_tables import print_tables

        print_tables(results)
    if parsed.plot:
        from mlc_dsv3.bench.plot import draw

        draw(results, parsed.plot)


def _settings(parsed: argparse.Namespace) -> BenchSettings:
    """The options, checked together before anything is done."""
    from mlc_dsv3.bench.extras import require_llama, require_plot, require_torch
    from mlc_dsv3.bench.plot import check_path
    from mlc_dsv3.bench.settings import DRAFTED_PROMPT, BenchSettings
    from mlc_dsv3.compiler.targets import read_description

    check_together(parsed)
    if (parsed.quality or parsed.plot) and read_description(parsed.device)["target"]["name"] != "cpu":
        raise UserError("--quality and --plot are for the device cpu")
    prefill, decode = parsed.prefill, parsed.decode
    if parsed.speculative:
        prefill = DRAFTED_PROMPT
    if parsed.attention:
        prefill, decode = 1, 1
    settings = BenchSettings(
        device=parsed.device,
        cache_dtype=parsed.cache_dtype,
        threads=parsed.threads,
        prefill=prefill,
        decode=decode,
        depths=_numbers(parsed.depth, "--depth", "0,4096"),
        batches=_numbers(parsed.batch, "--batch", "1,8"),
        verify=() if parsed.verify == "0" or parsed.attention else _numbers(parsed.verify, "--verify", "2,4"),
        rounds=parsed.rounds,
        profile=parsed.profile,
        versus=parsed.versus,
        context_window=parsed.context_window,
    )
    if settings.versus:
        require_torch() if settings.versus == "torch" else require_llama()
    if parsed.plot:
        check_path(parsed.plot)
        require_plot()
    return settings


def _numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{option} is {text!r}; it takes whole numbers with commas between, such as {example}"
        ) from None


def _speed(parsed: argparse.Namespace, quantizations: list[str], settings: BenchSettings) -> list[dict[str, Any]]:
    from mlc_dsv3.bench.run import measure, meter_of

    results, meter = [], None
    for subject in _subjects(parsed, quantizations, settings):
        meter = meter or meter_of(settings)
        results += measure(subject, settings, meter)
    return results


def _subjects(parsed: argparse.Namespace, quantizations: list[str], settings: BenchSettings) -> Iterator[Subject]:
    """The model in each quantization, made ready one after the other once all are known to fit."""
    from mlc_dsv3.bench.gguf_model import gguf_type, refuse_unknown_to_llama
    from mlc_dsv3.cli.arguments import read_model
    from mlc_dsv3.demo import checkpoint_path
    from relax_model.layout import layout_of

    model, ignored = parsed.model_config or parsed.model or str(checkpoint_path()), parsed.ignore_config_field
    source = read_model(model, ignored, without_mtp=parsed.no_mtp)
    name = source.name if parsed.model or parsed.model_config else "demo"
    target = settings.target
    chosen = quantizations or [source.quantization or target.default("quantization")]
    if parsed.speculative and not source.config.num_nextn_predict_layers:
        raise UserError(f"{name} has no multi-token prediction layer to draft with")
    for quantization in map(target.stored_as, chosen):
        layout_of(quantization)
        settings.refuse_unless_it_fits(source.config, quantization)
        if settings.versus:
            refuse_unknown_to_llama(source.config, gguf_type(quantization))

    from mlc_dsv3.bench.subject import model_subject, random_subject
    from mlc_dsv3.json_files import read_json
    from mlc_dsv3.weights.corrections import with_mtp_layers

    for quantization in chosen:
        if parsed.model_config:
            fields = read_json(Path(parsed.model_config))
            fields = with_mtp_layers(fields.get("model_config", fields), source.config.num_nextn_predict_layers)
            fields = {name: value for name, value in fields.items() if name not in ignored}
            yield random_subject(fields, name, target.stored_as(quantization), target)
        else:
            yield model_subject(
                parsed.model,
                name,
                quantization,
                target,
                ignore_config_fields=ignored,
                without_mtp=parsed.no_mtp,
                before_making=partial(_check_tokenizer, parsed),
            )


def _check_tokenizer(parsed: argparse.Namespace, folder: Path) -> None:
    """UserError where the folder lacks what a text or chats need: said before minutes of conversion."""
    from mlc_dsv3.runtime.tokenizer import Tokenizer

    if parsed.experts or parsed.prompts:
        tokenizer = Tokenizer.load(folder)
        if parsed.prompts:
            _ = tokenizer.chat_template


def _attention(parsed: argparse.Namespace, quantizations: list[str], settings: BenchSettings) -> None:
    """One layer's attention in each quantization."""
    from mlc_dsv3.bench.attention import AttentionRun
    from mlc_dsv3.bench.run import meter_of
    from mlc_dsv3.cli.arguments import read_model
    from mlc_dsv3.cli.bench_tables import print_attention

    source = read_model(parsed.model_config, parsed.ignore_config_field, without_mtp=parsed.no_mtp)
    config, target = source.config, settings.target
    if min(settings.depths) < 1:
        raise UserError("--depth is 0, where there is nothing to attend to; give --depth 8192, say")
    results = []
    for quantization in quantizations or [target.default("quantization")]:
        stored = target.stored_as(quantization)
        one = replace(config, num_hidden_layers=1, num_nextn_predict_layers=0)
        settings.refuse_unless_it_fits(one, stored, weights=False)
        run = AttentionRun(
            config, stored, target, settings.thread_count, settings.rounds, versus_torch=settings.versus == "torch"
        )
        results += run.measure(settings.batches, settings.depths, meter_of(settings))
    if parsed.json:
        print_json([asdict(result) for result in results])
    else:
        print_attention(results)


def _experts(parsed: argparse.Namespace, quantizations: list[str], settings: BenchSettings) -> None:
    """The load of the experts by a text, in the first quantization."""
    from mlc_dsv3.cli.text import read_text

    text = read_text(parsed.experts, "--experts")
    subject = next(_subjects(parsed, quantizations, settings))
    config = subject.artifact.model_config
    if config.router is None:
        raise UserError(f"{subject.name} has no experts")

    from mlc_dsv3.experts.load import count_load
    from mlc_dsv3.experts.reading import Reader
    from mlc_dsv3.runtime.model import CompiledModel
    from mlc_dsv3.runtime.tokenizer import Tokenizer

    tokens = Tokenizer.load(subject.artifact.path).encode(text)
    model = CompiledModel.load(subject.artifact, subject.library, threads=settings.thread_count)
    reader = Reader(model, settings.context_window)
    reads = list(reader.read_all(tokens))
    loads = {"with the correction bias": count_load(config.router, reader.moe_layers, reads)}
    if config.router.has_correction_bias:
        plain = count_load(config.router, reader.moe_layers, reads, with_bias=False)
        loads["without"] = plain
    else:
        loads = {"load": loads["with the correction bias"]}
    if parsed.plot:
        from mlc_dsv3.experts.heat_map import draw

        draw(loads, f"{subject.name}, {len(tokens)} tokens", parsed.plot)
    if parsed.json:
        print_json(
            {"model": subject.name, "tokens": len(tokens), **{name: load.describe() for name, load in loads.items()}}
        )
        return
    columns = ("layer", *(f"{name}: busiest above the mean" for name in loads), "idle experts")
    first, *_ = loads.values()
    rows = []
    for place, layer in enumerate(first.layers):
        shares = [f"{load.violation[place]:.0%}" for load in loads.values()]
        rows.append((str(layer), *shares, str(int((first.counts[place] == 0).sum()))))
    print_table(rows, columns)


def _drafted(parsed: argparse.Namespace, quantizations: list[str], settings: BenchSettings) -> None:
    """Decoding with drafts, beside plain decoding."""
    from mlc_dsv3.bench.drafted import measure_drafted
    from relax_model.layout import cached_token_bytes

    results, conversations = [], _conversations(parsed)
    for subject in _subjects(parsed, quantizations, settings):
        config, quantization = subject.artifact.model_config, subject.artifact.quantization
        dtype = settings.target.cache_dtype(quantization)
        results += measure_drafted(
            subject,
            settings.thread_count,
            parsed.speculative.split(","),
            settings.batches,
            tokens=settings.decode,
            rounds=settings.rounds,
            acceptance=parsed.acceptance,
            chats=_chats(conversations, subject) if conversations else None,
            token_bytes=cached_token_bytes(dtype, config.kv_lora_rank, config.qk_rope_head_dim),
        )
    if parsed.json:
        print_json([asdict(result) for result in results])
        return
    from mlc_dsv3.cli.bench_tables import print_drafted

    print_drafted(results)


def _conversations(parsed: argparse.Namespace) -> list[list[dict[str, str]]]:
    """What is answered: --prompts, or the demo's held-out questions; nothing where random tokens are gone on with."""
    if parsed.prompts:
        from mlc_dsv3.cli.text import read_text

        lines = read_text(parsed.prompts, "--prompts").splitlines()
        return [[{"role": "user", "content": line}] for line in lines if line.strip()]
    if parsed.model or parsed.model_config:
        return []
    from mlc_dsv3.demo.questions import held_out_questions

    return [list(question.messages) for question in held_out_questions(200)]


def _chats(conversations: list[list[dict[str, str]]], subject: Subject) -> Chats:
    from mlc_dsv3.bench.drafted import Chats
    from mlc_dsv3.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(subject.artifact.path)
    prompts = [tokenizer.chat_prompt(conversation) for conversation in conversations]
    return Chats(prompts, frozenset(tokenizer.eos_token_ids))


def _quality(parsed: argparse.Namespace, quantizations: list[str], settings: BenchSettings) -> None:
    from mlc_dsv3.bench.quality import as_named, measure_quality
    from relax_model.layout import QUANTIZATIONS, layout_of

    for name in quantizations:
        layout_of(name)
    found = measure_quality(quantizations or list(QUANTIZATIONS), parsed.questions, settings.cache_dtype)
    for quality in found:
        quality.speed = _speed(parsed, [as_named(quality.quantization)], replace(settings, verify=(), batches=(1,)))
    if parsed.json:
        print_json([asdict(quality) for quality in found])
        return
    columns = ("quantization", "size", "right", "KL (nats)", "load s", "prefill tok/s", "decode tok/s")
    print_table(
        [
            (
                quality.quantization,
                size(quality.size_bytes),
                f"{quality.accuracy:.1%}",
                f"{quality.divergence:.5f}",
                f"{quality.load_seconds:.3f}",
                *(f"{measured['tokens_per_second']:.0f}" for measured in quality.speed[:2]),
            )
            for quality in found
        ],
        columns,
    )
    print()
    kinds = list(found[0].accuracy_by_kind)
    rows = [
        (
            kind,
            f"{found[0].commonest_by_kind[kind]:.1%}",
            *(f"{quality.accuracy_by_kind[kind]:.1%}" for quality in found),
        )
        for kind in kinds
    ]
    print_table(rows, ("right answers by kind", "commonest answer", *(quality.quantization for quality in found)))
