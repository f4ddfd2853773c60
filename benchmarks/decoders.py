"""Qwen3.5 and Gemma 4, pruned, unpruned, and with a smaller picture, in one run: `python benchmarks/decoders.py`.

The decoders have the published sizes of Qwen3.5-0.8B and Gemma 4 E2B, vocabulary included, and random weights: speed
does not depend on what they are. (Gemma's table of per-layer inputs, a look-up, has fewer rows.) Features are made
beforehand by a tiny tower, so that only the decoder is timed: a smaller picture also saves time in the tower, pruning
does not. Variants take turns within each round, so that a machine that slows down slows all of them; medians and
quartiles are over the rounds, after one that is not counted.

Prints tables, or with `--json` one JSON document (`docs/results/decoders.json` is one); `--smoke` takes seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as hf
from torch import Tensor, nn

import adaptprune
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import parts
from adaptprune.hooks.seams.layers import finds_attention, key_sources

KEEP = 0.25
BEFORE, AFTER = 16, 48
TEXT = BEFORE + AFTER
#: By visual tokens, rows and columns of them; a quarter of them is the picture of half the height and width.
GRIDS = {64: (8, 8), 1024: (32, 32), 2024: (44, 46)}
#: Tokens of a chunk of the gated delta rule, which transformers' code has as a default.
CHUNK = 64
WORDS = 256  # text is made of the first tokens alone, so that look-up tables need no more rows
IMAGE, VIDEO, START, END, SOUND = 200, 201, 202, 203, 204
FORMULA = (
    "FLOPs of a layer over n tokens = 2 n (weights of its matrices), + 4 n m w with attention over m keys (w = heads x "
    "head size; masked ones too), + n h (C (5 dk + 3 dv) + 6 dk dv) with linear attention (h heads; n in chunks of "
    f"C = {CHUNK}); n = 1 in layers that read others' keys; + what runs once; expected = FLOPs unpruned / pruned"
)


@dataclass(frozen=True)
class Decoder:
    """A model with random weights, and how it is measured.

    Attributes
    ----------
    layer : int
        K, the smallest that suits all three methods.
    option : str
        What AdaptPrune needs there.
    encode : callable
        From rows and columns of visual tokens to the arguments that a forward is handed for such a picture.
    shape : str
        What stands above the table.
    """

    name: str
    model: Any
    layer: int
    option: str
    encode: Callable[[int, int], dict[str, Any]]
    shape: str


def qwen3_5(smoke: bool, dtype: torch.dtype) -> Decoder:
    """The smallest Qwen3.5: three layers of linear attention, then one that attends, and so on."""
    full = {"vocab_size": 248320, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24}
    full |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "linear_num_value_heads": 16}
    tiny = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "linear_num_value_heads": 2}
    tiny |= {"linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True}
    text = {
        **(tiny if smoke else full),
        "rope_parameters": {**rope, "mrope_section": [4, 2, 2] if smoke else [11, 11, 10]},
    }
    tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 8}
    config = hf.Qwen3_5Config(
        text_config={**text, "tie_word_embeddings": True},
        vision_config={**tower, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=True,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = build(hf.Qwen3_5ForConditionalGeneration, config, dtype)

    def encode(rows: int, columns: int) -> dict[str, Any]:
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        pixels = torch.randn(4 * rows * columns, 3 * 2 * 8 * 8).to(dtype)
        return {"image_grid_thw": grid, **parts.ready({"image": model.get_image_features(pixels, grid)})}

    return Decoder("qwen3_5", model, 4, "keys=previous", encode, described(model, smoke, "Qwen3.5-0.8B"))


def gemma4(smoke: bool, dtype: torch.dtype) -> Decoder:
    """Gemma 4 E2B: four sliding layers, then a full one, and so on; the last 20 layers read the keys of 13 and 14."""
    full = {"vocab_size": 262144, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35}
    full |= {"num_attention_heads": 8, "num_key_value_heads": 1, "num_kv_shared_layers": 20}
    tiny = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 15}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_kv_shared_layers": 5, "sliding_window": 48}
    tiny |= {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 16}
    text = tiny if smoke else full
    kinds = ["sliding_attention"] * 4 + ["full_attention"]
    config = hf.Gemma4Config(
        text_config={
            **text,
            "layer_types": kinds * (text["num_hidden_layers"] // len(kinds)),
            "vocab_size_per_layer_input": WORDS,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
            "position_embedding_size": 128,
        },
        audio_config=None,
        image_token_id=IMAGE, video_token_id=VIDEO, boi_token_id=START, eoi_token_id=END, audio_token_id=SOUND,
        boa_token_id=SOUND + 1, eoa_token_index=SOUND + 2,
    )  # fmt: skip
    model = build(hf.Gemma4ForConditionalGeneration, config, dtype)

    def encode(rows: int, columns: int) -> dict[str, Any]:
        places = torch.cartesian_prod(torch.arange(2 * rows), torch.arange(2 * columns)).flip(-1)[None]
        pixels = torch.rand(1, 4 * rows * columns, 3 * 4 * 4).to(dtype)
        return {"image_position_ids": places, **parts.ready({"image": model.get_image_features(pixels, places)})}

    return Decoder("gemma4", model, 5, "keys=layer", encode, described(model, smoke, "Gemma 4 E2B"))


def build(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return kind._from_config(config, dtype=dtype).eval()


def described(model: Any, smoke: bool, like: str) -> str:
    """What a decoder is made of, in words."""
    layers, config = parts.parts_of(model).layers, parts.text_config(model.config)
    kinds = list(config.layer_types)
    shared = key_sources(layers)
    counted = ", ".join(f"{kinds.count(kind)} of {kind.replace('_', ' ')}" for kind in dict.fromkeys(kinds))
    millions = sum(weight.numel() for weight in parts.parts_of(model).decoder.parameters()) / 1e6
    text = f"{len(layers)} layers of {config.hidden_size} ({counted}), {millions:,.0f} million parameters"
    if shared:
        text += f"; the last {len(shared)} layers read the keys of {' and '.join(map(str, sorted({*shared.values()})))}"
    return f"{text}; " + (f"tiny, in the manner of {like}" if smoke else f"the size of {like}")


# -- what is expected --------------------------------------------------------------------------------------------------


def matrices(module: nn.Module) -> int:
    """The weights of the matrices in a module."""
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))


def layer_flops(layer: Any, tokens: int, keys: int) -> int:
    """FLOPs of one decoder layer over `tokens` tokens whose attention is over `keys` keys: see FORMULA."""
    flops, attention = 2 * tokens * matrices(layer), finds_attention(layer)
    if attention is not None:
        return flops + 4 * tokens * keys * int(attention.o_proj.in_features)
    mixer = layer.linear_attn
    key, value = mixer.head_k_dim, mixer.head_v_dim
    whole = -(-tokens // CHUNK) * CHUNK
    return flops + whole * mixer.num_v_heads * (CHUNK * (5 * key + 3 * value) + 6 * key * value)


def prefill_flops(model: Any, visual: int, kept: int, layer: int) -> int:
    """FLOPs of a prompt with `visual` visual tokens of which `kept` are left from decoder layer `layer` on."""
    taken = parts.parts_of(model)
    sources = key_sources(taken.layers)
    held = [TEXT + (visual if number < layer else kept) for number in range(len(taken.layers))]
    flops = 0
    for number, module in enumerate(taken.layers):
        reads = number in sources  # transformers runs these for the last token alone
        flops += layer_flops(module, 1 if reads else held[number], held[sources.get(number, number)])
    projected = getattr(taken.decoder, "per_layer_model_projection", None)
    if projected is not None:
        flops += 2 * (TEXT + visual) * projected.weight.numel()
    return flops + 2 * model.get_output_embeddings().weight.numel()


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Variant:
    """One way to read the prompt: milliseconds of each round, and what the last one left behind."""

    name: str
    method: str | None
    inputs: dict[str, Any]
    expected: float
    prefill_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    selection_ms: list[float] = field(default_factory=list)
    kept: int = 0
    kv_bytes: int = 0
    memory_bytes: int = 0

    def row(self, baseline: Variant) -> dict[str, Any]:
        """Everything that is noted of a variant. Speed-ups are of each round, so that all in it were slowed alike."""
        ratios = [before / after for before, after in zip(baseline.prefill_ms, self.prefill_ms, strict=True)]
        return {
            "variant": self.name,
            "method": self.method,
            "prompt_tokens": self.inputs["input_ids"].shape[1],
            "visual_tokens_kept": self.kept,
            "prefill_ms": spread(self.prefill_ms),
            "prefill_wall_ms": spread(self.wall_ms),
            "speedup": spread(ratios),
            "expected": round(self.expected, 3),
            "step_ms": spread(self.step_ms),
            "selection_ms": spread(self.selection_ms or [0.0]),
            "kv_bytes": self.kv_bytes,
            "memory_bytes": self.memory_bytes,
        }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def prompt(decoder: Decoder, rows: int, columns: int) -> dict[str, Any]:
    """A picture between text, the same text for every picture."""
    text = torch.randint(10, IMAGE, (1, TEXT), generator=torch.Generator().manual_seed(1))
    picture = torch.full((1, rows * columns), IMAGE)
    ids = torch.cat(
        [text[:, : BEFORE - 1], torch.tensor([[START]]), picture, torch.tensor([[END]]), text[:, BEFORE + 1 :]], 1
    )
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), **decoder.encode(rows, columns)}


@torch.inference_mode()
def variants(decoder: Decoder, visual: int) -> list[Variant]:
    """The prompt unpruned, under each method, and with a smaller picture."""
    rows, columns = GRIDS[visual]
    large, small = prompt(decoder, rows, columns), prompt(decoder, rows // 2, columns // 2)
    kept, layer = rows * columns // 4, decoder.layer

    def expected(shown: int, left: int, first: int) -> float:
        whole = prefill_flops(decoder.model, visual, visual, 0)
        return whole / prefill_flops(decoder.model, shown, left, first)

    methods = [("random", 0, ""), ("random", layer, ""), ("fastv", layer, ""), ("adaptprune", layer, decoder.option)]
    found = [Variant("unpruned", None, large, 1.0)]
    for name, first, option in methods:
        spec = ",".join(filter(None, (f"{name}:keep_ratio={KEEP},layer={first}", option)))
        found.append(Variant(f"{name}, K = {first}", spec, large, expected(visual, kept, first)))
    return [*found, Variant("smaller picture", None, small, expected(kept, kept, 0))]


@torch.inference_mode()
def measure(model: Any, variant: Variant, steps: int, counted: bool) -> None:
    """Read the prompt once, and take some decode steps over its cache."""
    token = torch.tensor([[5]])
    with adaptprune.prune(model, variant.method) if variant.method else nullcontext() as report:
        prefill, wall, output = timed(lambda: model(**variant.inputs, logits_to_keep=1, use_cache=True))
        cache, taken = kv.cache_of(output), []
        variant.kv_bytes, variant.memory_bytes = kv.nbytes(cache), memory(cache)
        for _ in range(steps):
            taken.append(timed(lambda: model(input_ids=token, **kv.handing(model, cache), use_cache=True))[0])
    shown = int((variant.inputs["input_ids"] == IMAGE).sum())
    variant.kept = report.num_kept if report is not None else shown
    if counted:
        variant.prefill_ms.append(prefill)
        variant.wall_ms.append(wall)
        variant.step_ms.append(statistics.median(taken))
        if report is not None:
            variant.selection_ms.append(report.selection_ms)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Milliseconds by the clock, milliseconds on the wall, and what `work` returns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start, begin = clock(), time.perf_counter()
    result = work()
    return 1000 * (clock() - start), 1000 * (time.perf_counter() - begin), result


def memory(cache: Any) -> int:
    """Bytes of what layers of linear attention remember: as many for every prompt."""
    kept = [
        getattr(layer, name, None) or {}
        for layer in kv.layers_of(cache)
        for name in ("conv_states", "recurrent_states")
    ]
    return sum(state.nbytes for states in kept for state in states.values() if isinstance(state, Tensor))


def run(make: Callable[[bool, torch.dtype], Decoder], visual: list[int], options: Any) -> dict[str, Any]:
    """Everything about one decoder."""
    # not in inference mode: torch copies weights made there for a product with one token's slice, 3 s for Qwen's output
    decoder, tables = make(options.smoke, getattr(torch, options.dtype)), []
    print(f"{decoder.name}: {decoder.shape}", file=sys.stderr, flush=True)
    for count in visual:
        begin, found = load(), variants(decoder, count)
        for turn in range(options.rounds + 1):
            for variant in found:
                measure(decoder.model, variant, options.steps, counted=turn > 0)
            print(f"{count} visual tokens, round {turn} of {options.rounds}", file=sys.stderr, flush=True)
        rows = [variant.row(found[0]) for variant in found]
        tables.append({"visual_tokens": count, "text_tokens": TEXT, "load": [begin, load()], "rows": rows})
    return {"decoder": decoder.name, "shape": decoder.shape, "layer": decoder.layer, "tables": tables}


# -- telling -----------------------------------------------------------------------------------------------------------


def load() -> float:
    """How many processes wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def machine(dtype: str) -> str:
    """Where it was measured, and with what."""
    listed = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in listed.splitlines() if line.startswith("model name")]
    clock = "CPU time of the thread" if torch.get_num_threads() == 1 else "wall"
    released = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{dtype}, {', '.join(f'{name} {number}' for name, number in released.items())}, "
        f"Python {platform.python_version()}; batch 1, sdpa; clock: {clock}"
    )


def markdown(content: dict[str, Any]) -> str:
    """The tables as docs/decoders.md shows them."""
    lines = []
    for decoder in content["decoders"]:
        for table in decoder["tables"]:
            lines += [
                f"**{decoder['decoder']}**, {table['visual_tokens']} visual + {table['text_tokens']} text tokens",
                "",
            ]
            lines += ["| | visual tokens | prefill, ms | speed-up | expected | decode step, ms | KV cache, MiB |"]
            lines += ["|---|---:|---:|---:|---:|---:|---:|", *map(_line, table["rows"]), ""]
    return "\n".join(lines).rstrip()


def _line(row: dict[str, Any]) -> str:
    prefill, speedup, step = (
        f"{found['median']:,.{places}f}{unit} ({found['q1']:,.{places}f}-{found['q3']:,.{places}f})"
        for found, places, unit in ((row["prefill_ms"], 0, ""), (row["speedup"], 2, "x"), (row["step_ms"], 1, ""))
    )
    cells = [row["variant"], row["visual_tokens_kept"], prefill, speedup, f"{row['expected']:.2f}x", step]
    return f"| {' | '.join(map(str, cells))} | {row['kv_bytes'] / 2**20:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--visual", type=int, nargs="+", choices=GRIDS, help="default: 1024 and 2024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="decode steps of each round, of which the median counts")
    parser.add_argument("--threads", type=int, help="1: times are CPU time, which other processes delay less")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--smoke", action="store_true", help="tiny decoders, which show that it runs and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    visual = options.visual or ([64] if options.smoke else [1024, 2024])
    found = [run(MODELS[name], visual, options) for name in options.decoder]
    content = {
        "command": " ".join(["python benchmarks/decoders.py", *sys.argv[1:]]),
        "machine": machine(options.dtype),
        "keep_ratio": KEEP,
        "formula": FORMULA,
        "rounds": options.rounds,
        "steps": options.steps,
        "decoders": found,
    }
    print(json.dumps(content, indent=2) if options.json else f"{markdown(content)}\n\n{content['machine']}. {FORMULA}.")


MODELS = {"qwen3_5": qwen3_5, "gemma4": gemma4}

if __name__ == "__main__":
    main()
