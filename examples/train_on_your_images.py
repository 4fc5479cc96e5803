"""Train a classifier on a folder of images, a few steps.

    python examples/train_on_your_images.py out/trained [FOLDER]

FOLDER has one sub-folder for each class. Without it, drawn scenes of two classes are written and used. Prints the loss
and, in the end, the accuracy on the training images with all cores and with half of them. Saves the model.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image

import veca
from veca.data import Images, inference_transform, sample_scene, training_transform
from veca.train import BudgetSampler, ElasticOptimizer

STEPS, SIZE = 24, 48  # pixels


def draw_scenes(folder: Path) -> Path:
    """48 pictures of bright and of dark scenes, each kind in its sub-folder."""
    for index in range(48):
        image = sample_scene(index).render(SIZE)[0]
        path = folder / ("bright" if image.mean() > 0.5 else "dark") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(path)
    return folder


def main(out: Path, folder: Path | None) -> None:
    torch.manual_seed(0)
    train = Images(folder or draw_scenes(out / "images"), training_transform(SIZE))
    print(f"{len(train)} images of {', '.join(train.classes)}")
    model = veca.create_model("veca_nano_patch16", num_cores=16, num_classes=len(train.classes))
    optimizer, budgets = ElasticOptimizer(model, lr=5e-4, weight_decay=0.05), BudgetSampler(num_cores=16)
    loader = DataLoader(train, batch_size=8, shuffle=True)
    batches = (batch for _ in range(STEPS) for batch in loader)
    for step, batch in zip(range(STEPS), batches, strict=False):
        (num_cores,) = budgets(step)  # every step trains a prefix of the cores
        loss = cross_entropy(model(batch["image"], num_cores=num_cores), batch["label"])
        loss.backward()
        optimizer.step(num_cores)
        optimizer.zero_grad()
        if step % 8 == 0:
            print(f"step {step}: loss {loss.item():.3f} with {num_cores} cores")
    model.eval().save_pretrained(out / "model")
    plain = Images(train.source, inference_transform(SIZE))
    images, labels = torch.stack([x["image"] for x in plain]), torch.tensor(plain.labels)
    with torch.inference_mode():
        for num_cores in (16, 8):
            right = (model(images, num_cores=num_cores).argmax(1) == labels).float().mean()
            print(f"{num_cores} cores: {right:.0%} of the training images are classified correctly")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/trained"), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
