"""Core attention in a timm model, by one argument.

    python examples/drop_in.py out/drop_in

Compares timm's ViT-S/16 with the same model with core attention. Prints the GFLOPs of a forward pass at four image
sizes and writes them to flops.csv. Also prints that the weights of one model load into the other.
"""

import csv
import sys
from pathlib import Path

import timm
import torch

import veca
from veca.inspect.cost import counted_flops

SIDES = (224, 512, 1024, 2048)  # pixels


def main(out: Path) -> None:
    same = {"class_token": False, "no_embed_class": True, "global_pool": "avg", "dynamic_img_size": True}
    stock = timm.create_model("vit_small_patch16_224", reg_tokens=64, **same).eval()
    model = timm.create_model(
        "vit_small_patch16_224",
        attn_layer=veca.core_attention(64),  # the only new word
        reg_tokens=64,  # the cores are timm's register tokens
        **same,
    ).eval()
    print("weights of the stock model load:", model.load_state_dict(stock.state_dict()))

    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 256, 320))  # any size that the patch size divides
    print("logits of a batch of 256 x 320 px:", tuple(logits.shape))

    out.mkdir(parents=True, exist_ok=True)
    with open(out / "flops.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["side", "full_gflops", "core_gflops"])
        for side in SIDES:
            full, core = (counted_flops(each, side, side) / 1e9 for each in (stock, model))
            table.writerow([side, f"{full:.2f}", f"{core:.2f}"])
            print(f"{side:5d} px: full attention {full:7.1f} GFLOPs, core attention {core:6.1f}, {full / core:4.1f} x")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/drop_in"))
