"""Features of one picture, and maps of what the cores read.

    python examples/features_and_attention_maps.py out/features

Draws a scene, runs the model whose weights ship with the package, and prints the shapes of its features and the core
that the object moves most. Writes features.npz and features.png: the cores, the patches as colours, and four maps.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import veca
from veca.data import sample_scene
from veca.inspect.visualize import core_shares, feature_figure


def main(out: Path) -> None:
    scene = sample_scene(3, seed=7)
    image, mask = scene.render(128)  # (3, 128, 128) in [0, 1] and (128, 128), 0 where there is no object
    print(scene.caption)

    model, _ = veca.load("veca_nano_patch8")  # the transform is for PIL images
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))
    with torch.inference_mode():
        features, (maps,) = model.forward_maps(((image - mean) / std)[None])
    print("global token", tuple(features.global_token.shape))
    print("patches", tuple(features.patches.shape), "on a grid of", features.grid_size)
    print("cores", tuple(features.cores.shape), "at", tuple(features.core_xy.shape))

    shares = core_shares(maps, range(features.num_cores))  # (64, 16, 16), mean 1 over the patches
    covered = torch.nn.functional.avg_pool2d((mask > 0).float()[None], 8)[0]  # share of each patch
    on_object = (shares * covered).sum((1, 2)) / covered.sum()  # 1 would be an even spread
    core = int(on_object.argmax())
    x, y = features.core_xy[0, core].tolist()
    print(f"core {core} at ({x:.2f}, {y:.2f}) is moved {on_object[core]:.2f} times as much by objects as by chance")

    out.mkdir(parents=True, exist_ok=True)
    arrays = {"patches": features.patches[0], "cores": features.cores[0], "core_xy": features.core_xy[0]}
    np.savez(out / "features.npz", shares=shares, on_object=on_object, **arrays)
    figure, _ = feature_figure(model, image, title=scene.caption)
    figure.savefig(out / "features.png", dpi=60)
    print(out / "features.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/features"))
