"""Optimus in a folder: its weights for stock classes, and its two vocabularies.

    convert_optimus("optimus-vae.pth", "out/optimus", bert="bert-base-cased", gpt2="gpt2")
    vae, tokens = load_optimus("out/optimus")

| file | holds |
|---|---|
| weights.safetensors | weights of a `CaptionVAE` |
| config.json | sizes, the first and last token, length of a caption |
| bert/, gpt2/ | files of the two tokenizers |
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from veca.files import read_json, read_tensors, whole_folder

from ...data.pickles import read_torch
from ...errors import LayoutError
from .model import CaptionVAE

__all__ = ["CaptionTokens", "convert_optimus", "load_optimus"]

FORMAT = 1
READ, WRITTEN = 77, 30  # most tokens that are read, and that are written
HEAD = 64  # width of a head of the public weights
ADDED = {"pad_token": "<PAD>", "bos_token": "<BOS>", "eos_token": "<EOS>"}
_LARGE = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", ".*")  # weights beside a tokenizer are not copied
_LINEARS = {
    "linear.weight": "encoder.linear.weight",
    "memory.weight": "decoder.transformer.linear.weight",
    "shift.weight": "decoder.transformer.linear_emb.weight",
}


class CaptionTokens:
    """The tokenizers of Optimus: BERT's to read, GPT-2's with three added tokens to write.

    Args:
        bert, gpt2: Tokenizers.
        start, end: Numbers of the first and last token in GPT-2's vocabulary.

    Attributes:
        length: Most tokens that are written.
    """

    length = WRITTEN

    def __init__(self, bert: Any, gpt2: Any, start: int, end: int):
        self.bert, self.gpt2, self.start, self.end = bert, gpt2, start, end

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (n, t) for BERT and which of them belong to the caption. Longer captions end after 77 tokens."""
        options = {"padding": True, "truncation": True, "max_length": READ, "return_tensors": "pt"}
        out = self.bert(captions, **options)
        return out.input_ids, out.attention_mask.bool()

    def decode(self, rows: Tensor) -> list[str]:
        """Captions of GPT-2's tokens, up to the end token of each row."""
        texts = []
        for row in rows.tolist():
            kept = row[: row.index(self.end)] if self.end in row else row
            texts.append(" ".join(self.gpt2.decode(kept, skip_special_tokens=True).split()))
        return texts


def convert_optimus(file: str | Path, out: str | Path, bert: str | Path, gpt2: str | Path) -> Path:
    """Write a checkpoint of Optimus, such as the `optimus-vae.pth` of Versatile Diffusion, for `load_optimus`.

    Nothing is unpickled but tensors.

    Args:
        file: Checkpoint of torch.
        out: Folder to write; it must not exist.
        bert, gpt2: Local folders of the tokenizers of the encoder and the decoder.

    Raises:
        LayoutError: Weights are missing or unknown, or a folder is not there.
        UnsafePickleError: The file holds more than tensors.
    """
    found = read_torch(Path(file))
    found = found.get("model", found) if isinstance(found, dict) else found
    weights = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    for place in (bert, gpt2):
        if not Path(place).is_dir():
            raise LayoutError(f"expected a local folder of a tokenizer, got {place}; nothing is downloaded")
    sizes = _sizes_of(weights, Path(file))
    vae = _built(sizes)
    state = _renamed(weights)
    missing, unknown = sorted(vae.state_dict().keys() - state.keys()), sorted(state.keys() - vae.state_dict().keys())
    if missing or unknown:
        raise LayoutError(
            f"expected the weights of Optimus in {file}, got none of {missing[:4]}, and {unknown[:4]} beyond them"
        )
    with whole_folder(Path(out)) as partial:
        save_file({key: value.contiguous().clone() for key, value in state.items()}, partial / "weights.safetensors")
        for name, place in (("bert", bert), ("gpt2", gpt2)):
            shutil.copytree(
                place, partial / name, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.h5", ".*")
            )
        words = sizes["gpt2"]["vocab_size"]
        content = {"format": FORMAT, "kind": "optimus", **sizes, "start": words - 2, "end": words - 1}
        (partial / "config.json").write_text(json.dumps(content, indent=1) + "\n")
    load_optimus(out)
    return Path(out)


def load_optimus(folder: str | Path) -> tuple[CaptionVAE, CaptionTokens]:
    """The autoencoder and the tokenizers that `convert_optimus` wrote.

    Raises:
        LayoutError: A file is missing or damaged, or weights do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise LayoutError(f"expected a folder that `veca brain convert-optimus` wrote, got {folder}")
    content = read_json(folder / "config.json", LayoutError)
    if (content.get("format"), content.get("kind")) != (FORMAT, "optimus"):
        raise LayoutError(f"expected optimus of format {FORMAT} in {folder}, got {content.get('kind')}")
    vae = _built(content)
    try:
        vae.load_state_dict(read_tensors(folder / "weights.safetensors", LayoutError))
    except RuntimeError as error:
        raise LayoutError(f"expected the weights of Optimus in {folder}, got others: {error}") from error
    try:
        bert, gpt2 = (AutoTokenizer.from_pretrained(folder / x, local_files_only=True) for x in ("bert", "gpt2"))
    except (OSError, ValueError) as error:
        raise LayoutError(f"expected the tokenizers bert and gpt2 in {folder}, got others: {error}") from error
    gpt2.add_special_tokens(ADDED)
    return vae.eval(), CaptionTokens(bert, gpt2, content["start"], content["end"])


def _sizes_of(weights: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """Settings of both networks by the shapes of their weights."""
    try:
        words, width = weights["encoder.embeddings.word_embeddings.weight"].shape
        inner = weights["encoder.encoder.layer.0.intermediate.dense.weight"].shape[0]
        places = weights["encoder.embeddings.position_embeddings.weight"].shape[0]
        said, deep = weights["decoder.transformer.wte.weight"].shape
        seen = weights["decoder.transformer.wpe.weight"].shape[0]
        latent = weights["encoder.linear.weight"].shape[0] // 2
    except KeyError as error:
        raise LayoutError(f"expected the weights of Optimus in {file}, got none called {error.args[0]}") from error
    bert = {"vocab_size": words, "hidden_size": width, "intermediate_size": inner, "max_position_embeddings": places}
    bert |= {
        "num_hidden_layers": _count(weights, "encoder.encoder.layer."),
        "num_attention_heads": max(1, width // HEAD),
    }
    gpt2 = {"vocab_size": said, "n_embd": deep, "n_positions": seen, "n_head": max(1, deep // HEAD)}
    gpt2 |= {"n_layer": _count(weights, "decoder.transformer.h.")}
    return {"bert": bert, "gpt2": gpt2, "latent": latent}


def _count(weights: dict[str, Tensor], start: str) -> int:
    """Number of layers whose names begin so."""
    return 1 + max(int(key.removeprefix(start).partition(".")[0]) for key in weights if key.startswith(start))


def _built(sizes: dict[str, Any]) -> CaptionVAE:
    ends = {"bos_token_id": sizes["gpt2"]["vocab_size"] - 2, "eos_token_id": sizes["gpt2"]["vocab_size"] - 1}
    with torch.device("cpu"):
        encoder, decoder = BertModel(BertConfig(**sizes["bert"])), GPT2LMHeadModel(GPT2Config(**sizes["gpt2"], **ends))
        return CaptionVAE(encoder, decoder, sizes["latent"], pooling="first")


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of `CaptionVAE`, without buffers of masks and positions."""
    state = {name: weights[old] for name, old in _LINEARS.items() if old in weights}
    for key, value in weights.items():
        buffer = key.endswith((".attn.bias", ".attn.masked_bias", "position_ids"))
        if key not in _LINEARS.values() and not buffer and key.startswith(("encoder.", "decoder.")):
            state[key] = value
    return state
