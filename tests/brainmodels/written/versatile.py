"""A folder in the layout of Versatile Diffusion, and a checkpoint of Optimus, at width 32 with random weights."""

import json

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
)

WIDTH, LATENT, WORDS = 32, 24, ("a", "red", "blue", "circle", "square", "on")


def write_versatile(folder):
    """The seven components, as diffusers saves them."""
    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": WIDTH, "norm_num_groups": 8}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    heads = {"attention_head_dim": 4, "sample_size": 8}
    image = UNet2DConditionModel(
        in_channels=4, out_channels=4, down_block_types=down, up_block_types=up, **blocks, **heads
    )
    down, up = ("CrossAttnDownBlockFlat", "DownBlockFlat"), ("UpBlockFlat", "CrossAttnUpBlockFlat")
    text = UNetFlatConditionModel(
        in_channels=LATENT // 4, out_channels=LATENT // 4, down_block_types=down, up_block_types=up, **blocks, **heads
    )
    text.time_embedding.load_state_dict(image.time_embedding.state_dict())
    image.save_pretrained(folder / "image_unet")
    text.save_pretrained(folder / "text_unet")
    sizes = {"block_out_channels": (16, 16), "norm_num_groups": 8, "latent_channels": 4}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**sizes, **ends).save_pretrained(folder / "vae")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**tower, projection_dim=WIDTH, image_size=16, patch_size=8)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    write_words(folder / "tokenizer", {"<|startoftext|>": 0, "<|endoftext|>": 1}, "</w>")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 9}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    words = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    ends = {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 9}
    text_config = CLIPTextConfig(**tower, projection_dim=WIDTH, vocab_size=words, **ends)
    CLIPTextModelWithProjection(text_config).save_pretrained(folder / "text_encoder")
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(folder / "image_feature_extractor")
    return folder


def write_words(folder, special, end):
    """Files of a byte-pair tokenizer that spells words by letters, without merges."""
    folder.mkdir(parents=True)
    letters = sorted({letter for word in WORDS for letter in word} | {"Ġ", "."})
    names = [*special, *letters, *(letter + end for letter in letters if end)]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_optimus(folder):
    """A checkpoint with the names of Optimus, and the folders of its tokenizers."""
    torch.manual_seed(1)
    folder.mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(names) + "\n")
    (folder / "bert" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    write_words(folder / "gpt2", {"<|endoftext|>": 0}, "")
    (folder / "gpt2" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    said = 3 + len(json.loads((folder / "gpt2" / "vocab.json").read_text()))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=80, **sizes))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=said, n_positions=40, n_embd=32, n_layer=2, n_head=1))
    weights = {f"encoder.{key}": value for key, value in bert.state_dict().items()}
    weights |= {f"decoder.{key}": value for key, value in gpt2.state_dict().items()}
    weights["encoder.linear.weight"] = torch.randn(2 * LATENT, 32)
    weights["decoder.transformer.linear.weight"] = torch.randn(64, LATENT)
    weights["decoder.transformer.linear_emb.weight"] = torch.randn(32, LATENT)
    weights["decoder.transformer.h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
    torch.save(weights, folder / "optimus-vae.pth")
    return folder
