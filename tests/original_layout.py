"""Tiny checkpoints as haotian-liu/LLaVA writes them, and its forward restated from its parts.

Shares nothing with the package: language model, tower and projector are separate modules here, images are prepared with
PIL, and their features are put between the embeddings of the text around them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

PATCH, SIDE = 14, 4  # a picture or tile is 4 x 4 patches
SIZE = PATCH * SIDE
PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE], [3 * SIZE, SIZE], [SIZE, 3 * SIZE]]
TEXT = [
    "USER: What colour is the cat in this image? ASSISTANT: a red cat",
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions. [INST] [/INST]",
]


def tokenizer() -> LlamaTokenizer:
    """A Llama tokenizer of a few hundred pieces, with byte fallback."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


@dataclass
class Parts:
    """The modules of an original LLaVA, and its config.json."""

    text: nn.Module
    tower: CLIPVisionModel
    projector: nn.Module
    newline: Tensor | None
    tokenizer: LlamaTokenizer
    config: dict = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """Names and tensors of everything but the tower."""
        tensors = {**self.text.state_dict(), **self.projector_weights()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def projector_weights(self) -> dict[str, Tensor]:
        tensors = {f"model.mm_projector.{name}": tensor for name, tensor in self.projector.state_dict().items()}
        if self.newline is not None:
            tensors["model.image_newline"] = self.newline
        return tensors

    def tower_weights(self) -> dict[str, Tensor]:
        prefix = "model.vision_tower.vision_tower.vision_model."
        return {prefix + name: tensor for name, tensor in self.tower.state_dict().items()}


def parts(version: str = "1.5", mistral: bool = False, linear: bool = False, seed: int = 0, **config) -> Parts:
    """A tiny random LLaVA 1.5 or 1.6."""
    torch.manual_seed(seed)
    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    text_options = {
        **sizes,
        "vocab_size": len(words),
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    if mistral:
        text = MistralForCausalLM(MistralConfig(**text_options, sliding_window=None, rope_theta=1000000.0))
    else:
        text = LlamaForCausalLM(LlamaConfig(**text_options, pad_token_id=0))
    vision = {**sizes, "hidden_size": 24, "image_size": SIZE, "patch_size": PATCH, "initializer_range": 0.2}
    tower = CLIPVisionModel(CLIPVisionConfig(**vision))
    first = nn.Linear(24, 32)
    projector = first if linear else nn.Sequential(first, nn.GELU(), nn.Linear(32, 32))
    described = {
        **text_options,
        "architectures": ["LlavaMistralForCausalLM" if mistral else "LlavaLlamaForCausalLM"],
        "model_type": "llava_mistral" if mistral else "llava_llama",
        "hidden_act": "silu",
        "image_aspect_ratio": "pad" if version == "1.5" else "anyres",
        "mm_hidden_size": 24,
        "mm_projector_type": "linear" if linear else "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_mm_proj": True,
    }
    if mistral:
        described |= {"rope_theta": 1000000.0, "sliding_window": None}
    if version == "1.6":
        described |= {"image_grid_pinpoints": PINPOINTS, "mm_patch_merge_type": "spatial_unpad"}
    newline = torch.randn(32) if version == "1.6" else None
    return Parts(text.eval(), tower.eval(), projector.eval(), newline, words, {**described, **config})


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def save_sharded(folder: Path, stem: str, suffix: str, tensors: dict[str, Tensor]) -> None:
    """In two files with an index."""
    names = sorted(tensors)
    places = {name: f"{stem}-0000{1 + (i >= len(names) // 2)}-of-00002.{suffix}" for i, name in enumerate(names)}
    for place in sorted(set(places.values())):
        save_tensors(folder / place, {name: tensors[name] for name in names if places[name] == place})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def write_tower(model: Parts, folder: Path) -> str:
    model.tower.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(folder)
    return str(folder)


def write(model: Parts, folder: Path, *, form: str = "safetensors", inside: bool = False) -> str:
    """A complete checkpoint `folder`/llava and its tower `folder`/tower; `form` is safetensors, bin or bin-shards."""
    target = folder / "llava"
    target.mkdir(parents=True, exist_ok=True)
    write_config(model, target, write_tower(model, folder / "tower"))
    write_tokenizer(model, target)
    tensors = model.weights()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old checkpoints have these buffers
    if inside:
        tensors |= model.tower_weights()
    if form == "bin-shards":
        save_sharded(target, "pytorch_model", "bin", tensors)
    else:
        save_tensors(target / {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form], tensors)
    return str(target)


def write_tokenizer(model: Parts, folder: Path) -> None:
    """With the settings that published checkpoints have."""
    model.tokenizer.save_pretrained(folder)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, "padding_side": "right"}
    words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **words}))


def write_config(model: Parts, folder: Path, tower: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**model.config, "mm_vision_tower": tower}))


@torch.no_grad()
def original_logits(model: Parts, prompt: str, images: list[Image.Image]) -> Tensor:
    """Logits of a prompt with ``<image>`` where its images stand, (L, vocabulary)."""
    embed = model.text.get_input_embeddings()
    rows = []
    for number, chunk in enumerate(prompt.split("<image>")):
        ids = model.tokenizer(chunk, add_special_tokens=False).input_ids
        rows.append(embed(torch.tensor(([1] if number == 0 else []) + ids, dtype=torch.int64)))
        if number < len(images):
            rows.append(image_features(model, images[number]))
    return model.text(inputs_embeds=torch.cat(rows)[None]).logits[0]


def image_features(model: Parts, image: Image.Image) -> Tensor:
    """What stands in place of an image: (N, hidden)."""
    if model.newline is None:
        return encode(model, [square(image) if model.config["image_aspect_ratio"] == "pad" else image])[0]
    tiles, across, down = cut(image)
    whole, *rest = encode(model, [image.resize((SIZE, SIZE)), *tiles])
    # rows of tiles, rows of patches, tiles in the row, patches in the row
    grid = torch.stack(rest).view(down, across, SIDE, SIDE, -1).transpose(1, 2).reshape(down * SIDE, across * SIDE, -1)
    width, height = image.size
    rows, columns = grid.shape[:2]
    if width / height > columns / rows:
        spare = (rows - int(height * columns / width)) // 2
        grid = grid[spare : rows - spare]
    else:
        spare = (columns - int(width * rows / height)) // 2
        grid = grid[:, spare : columns - spare]
    lines = [torch.cat([line, model.newline[None]]) for line in grid]
    return torch.cat([whole, *lines])


def encode(model: Parts, images: list[Image.Image]) -> list[Tensor]:
    """Projected patch features of pictures that have the tower's shape."""
    size = {"height": SIZE, "width": SIZE}
    prepare = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=size)
    pixels = torch.cat([prepare(image, return_tensors="pt").pixel_values for image in images])
    states = model.tower(pixels, output_hidden_states=True).hidden_states[-2]
    return list(model.projector(states[:, 1:]))


def square(image: Image.Image) -> Image.Image:
    """Padded with the mean colour, the picture in the middle."""
    side = max(image.size)
    mean = tuple(int(255 * value) for value in (0.48145466, 0.4578275, 0.40821073))
    canvas = Image.new("RGB", (side, side), mean)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def cut(image: Image.Image) -> tuple[list[Image.Image], int, int]:
    """Tiles of the picture at the size that wastes least, row by row; how many across and down."""

    def fit(size: list[int]) -> tuple[int, int]:
        scale = min(size[0] / image.width, size[1] / image.height)
        used = min(int(image.width * scale) * int(image.height * scale), image.width * image.height)
        return used, used - size[0] * size[1]

    width, height = max(PINPOINTS, key=fit)
    scale = min(width / image.width, height / image.height)
    if width / image.width < height / image.height:
        small = (width, min(math.ceil(image.height * scale), height))
    else:
        small = (min(math.ceil(image.width * scale), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize(small), ((width - small[0]) // 2, (height - small[1]) // 2))
    boxes = [(left, top, left + SIZE, top + SIZE) for top in range(0, height, SIZE) for left in range(0, width, SIZE)]
    return [canvas.crop(box) for box in boxes], width // SIZE, height // SIZE


def write_lora(model: Parts, folder: Path, rank: int = 4) -> tuple[str, str]:
    """Unmerged LoRA weights as LLaVA's training leaves them, and their base; changes `model` to what both make.

    Returns
    -------
    (adapter, base)
        Folders. The base is a language model that has never seen an image.
    """
    base, adapter = folder / "vicuna", folder / "llava-lora"
    model.text.save_pretrained(base)
    write_tokenizer(model, base)
    write_config(model, adapter, write_tower(model, folder / "tower"))
    torch.manual_seed(7)
    matrices, names = {}, ["q_proj", "v_proj", "down_proj"]
    for name, module in model.text.named_modules():
        if name.rpartition(".")[2] not in names:
            continue
        down, up = 0.3 * torch.randn(rank, module.in_features), 0.3 * torch.randn(module.out_features, rank)
        matrices[f"base_model.model.{name}.lora_A.weight"] = down
        matrices[f"base_model.model.{name}.lora_B.weight"] = up
        module.weight.data += 2.0 * up @ down  # lora_alpha / r
    save_tensors(adapter / "adapter_model.bin", matrices)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.05}
    described = {**settings, "target_modules": names, "bias": "none", "base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    rest = {f"base_model.model.{name}": tensor for name, tensor in model.projector_weights().items()}
    save_tensors(adapter / "non_lora_trainables.bin", rest)
    return str(adapter), str(base)
