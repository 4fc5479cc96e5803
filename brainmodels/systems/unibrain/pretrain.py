"""Train a generator of drawn scenes, stage by stage: no brain data, no photographs, no downloads.

    generator = pretrain("out/generator", generator_named("nano"))

| stage | what is trained | on |
|---|---|---|
| latents | principal components of patches and of VECA tokens | pictures |
| captions | `CaptionVAE` | captions |
| tower | `TextTower` against VECA features, with captions of one wrong word | both |
| flow | `FourFlow`, both outputs in every step | both |
| drawer | `ConvDecoder` from image latents | pictures |

A stage that has ended is not trained again, and one that was stopped goes on from its last checkpoint.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from veca.data.scenes import BACKGROUND_COLORS, BACKGROUND_TEXTURES, COLORS, SHAPES, SIZES
from veca.files import read_tensors, whole_file
from veca.train.parallel import World, join_world

from ...errors import LayoutError
from ...features import Extractor, extractor
from ...features.weights import seeded
from ...nn import ConvDecoder
from ...simulated import scene_stimuli
from ...training.batches import Batch, RowNumbers
from ...training.run import Run, check_run
from .components import Components
from .losses import caption_loss, contrast_loss, noise_loss
from .model import CaptionVAE, FourFlow, TextTower
from .nano import NanoGenerator, averaged_tokens, patches_of, pictures_of
from .recipes import GeneratorRecipe
from .sampling import new_scheduler
from .saved import load_generator, save_generator
from .words import Vocabulary

__all__ = ["Scenes", "draw_scenes", "pretrain"]

_log = logging.getLogger(__name__)
BATCH = 64
NEVER = -1
# words that a wrong caption may exchange for each other; those of more than one word are left out
EXCHANGED = (SHAPES, COLORS, SIZES, BACKGROUND_TEXTURES[1:], BACKGROUND_COLORS)


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes with what VECA sees in them.

    Attributes:
        images: (n, H, W, 3) uint8.
        captions: Captions of each scene; forms 1 to 4 of `simulated.scene_stimuli`.
        tokens: (n, m, width) VECA's patch tokens, averaged to the grid of the context.
        pooled: (n, width) VECA's global token.
    """

    images: np.ndarray
    captions: list[list[str]]
    tokens: Tensor
    pooled: Tensor


def draw_scenes(recipe: GeneratorRecipe, context: Extractor, file: Path | None = None, device: Any = "cpu") -> Scenes:
    """The scenes of a recipe. VECA's features are kept in a file, which is read where it is there."""
    stimuli = scene_stimuli(recipe.scenes_seed, recipe.scenes, recipe.size.pixels)
    images = stimuli.images(stimuli.ids, recipe.size.pixels)
    captions = [stimuli.captions(str(name))[1:] for name in stimuli.ids]
    if file is not None and file.is_file():
        kept = read_tensors(file, LayoutError)
        return Scenes(images, captions, kept["tokens"], kept["pooled"])
    tokens, pooled = [], []
    for part in pictures_of(images, recipe.size.pixels).split(BATCH):
        seen = context.to(device).encode(part.to(device))
        assert seen.tokens is not None and seen.pooled is not None  # of VECA
        side = round(seen.tokens.shape[1] ** 0.5) // recipe.size.context_side
        tokens.append(averaged_tokens(seen.tokens, side).cpu())
        pooled.append(seen.pooled.cpu())
    found = Scenes(images, captions, torch.cat(tokens), torch.cat(pooled))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            save_file({"tokens": found.tokens, "pooled": found.pooled}, partial)
    return found


def pretrain(
    out: str | Path,
    recipe: GeneratorRecipe,
    *,
    context: Extractor | None = None,
    device: str | torch.device | None = None,
    save_every: int = 500,
    progress: bool = False,
) -> NanoGenerator:
    """Train a generator and save it in a folder; started again, it goes on.

    Args:
        out: Folder of the run. The generator is in `generator` below it.
        recipe: Sizes, scenes and stages.
        context: Extractor of the image context; None is the shipped VECA.
        device: Device; None is a GPU where there is one.
        save_every: Steps between checkpoints.
        progress: Show bars.

    Returns:
        The generator, loaded from its folder.

    Raises:
        BrainDataError: The run in `out` began with another recipe.
        FloatingPointError: A loss is not finite.
    """
    out, context = Path(out), context or extractor("veca_nano_patch8", pretrained=True)
    with join_world(device) as world:
        check_run(out / "run.json", {"recipe": recipe.to_json()}, world)
        scenes = draw_scenes(recipe, context, out / "scenes.safetensors", world.device)
        generator = seeded(recipe.captions.seed, lambda: _new(recipe, scenes, context))
        run = Run(world, recipe.precision, out, {"save_every": save_every, "progress": progress})
        stages = [_captions(run, generator, recipe, scenes)]
        stages.append(_tower(run, generator, recipe, scenes))
        stages.append(_flow(run, generator, recipe, scenes))
        generator.drawer = _drawer(out / "drawer", generator, recipe, scenes, world, progress)
        generator.cpu()
        generator.meta = {
            "recipe": recipe.to_json(),
            "unseen": f"sim{recipe.scenes_seed}:",
            "captions": 4,
            "stages": [_record(stage) for stage in stages] + [{"name": "drawer", **generator.drawer.trained}],
        }
        probe = [texts[recipe.forms[0] - 1] for texts in scenes.captions[:2]]
        save_generator(generator, out / "generator", scenes.images[:2], probe, recipe.half)
    return load_generator(out / "generator", context, world.device)


def _new(recipe: GeneratorRecipe, scenes: Scenes, context: Extractor) -> NanoGenerator:
    """A generator with its principal components fitted and all networks new."""
    size = recipe.size
    vocabulary = Vocabulary.of((text for texts in scenes.captions for text in texts), size.length)
    generator = NanoGenerator(size, vocabulary, context)
    patches = torch.cat(
        [patches_of(x, size.patch).flatten(0, 2) for x in pictures_of(scenes.images, size.pixels).split(BATCH)]
    )
    generator.patches = Components.fit(patches, size.components, standardise=False, whiten=True)
    fitted = {"standardise": True, "whiten": False}
    generator.global_token = Components.fit(scenes.pooled, size.context_width, **fitted)
    generator.tokens = Components.fit(scenes.tokens.flatten(0, 1), size.context_width, **fitted)
    return generator


class _Task(nn.Module):
    """Base of the tasks: tables of the scenes, and draws from the generator of the step."""

    ids: Tensor

    def __init__(self, ids: Tensor, forms: tuple[int, ...]):
        super().__init__()
        self.register_buffer("ids", ids, persistent=False)  # (n, forms, t)
        self.forms = forms

    def some(self, table: Tensor, rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of a table (n, forms, ...), one form each; and the number of the form."""
        chosen = torch.tensor(self.forms, device=table.device) - 1
        form = chosen[torch.randint(len(chosen), (len(rows),), generator=generator, device=table.device)]
        return table[torch.from_numpy(rows).to(table.device), form], form


class _CaptionTask(_Task):
    def __init__(self, vae: CaptionVAE, ids: Tensor, recipe: GeneratorRecipe):
        super().__init__(ids, recipe.forms)
        self.vae, self.kl_weight, self.free_bits = vae, recipe.kl_weight, recipe.free_bits

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        ids, _ = self.some(self.ids, batch.rows, generator)
        noise = torch.randn(len(ids), self.vae.latent, generator=generator, device=ids.device)
        return caption_loss(self.vae, ids, noise, self.kl_weight, self.free_bits)


class _TowerTask(_Task):
    features: Tensor
    group: Tensor
    rank: Tensor
    members: Tensor
    lengths: Tensor

    def __init__(
        self, tower: TextTower, ids: Tensor, features: Tensor, vocabulary: Vocabulary, recipe: GeneratorRecipe
    ):
        super().__init__(ids, recipe.forms)
        self.tower, self.count = tower, recipe.swaps
        self.register_buffer("features", features, persistent=False)
        members = [[vocabulary.number(word) for word in group if word in vocabulary.words] for group in EXCHANGED]
        members = [group for group in members if len(group) > 1]
        group, rank = torch.full((len(vocabulary),), NEVER), torch.zeros(len(vocabulary), dtype=torch.long)
        table = torch.zeros(len(members), max(map(len, members)), dtype=torch.long)
        for number, words in enumerate(members):
            group[words], rank[words] = number, torch.arange(len(words))
            table[number, : len(words)] = torch.tensor(words)
        sizes = torch.tensor([len(words) for words in members])
        for name, value in {"group": group, "rank": rank, "members": table, "lengths": sizes}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        ids, _ = self.some(self.ids, batch.rows, generator)
        features = self.features[torch.from_numpy(batch.rows).to(ids.device)]
        return contrast_loss(self.tower, ids, self.swapped(ids, generator), features)

    def swapped(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Captions (n, k, t), each with one word of a factor exchanged for another of the same factor."""
        if not self.count:
            return ids[:, None][:, :0]
        can = self.group[ids].ne(NEVER).float()
        place = torch.multinomial(can, self.count, replacement=True, generator=generator)  # (n, k)
        word = ids.gather(1, place)
        group = self.group[word]
        length = self.lengths[group]
        share = torch.rand(word.shape, generator=generator, device=ids.device)
        other = (self.rank[word] + 1 + (share * (length - 1)).long()) % length
        wrong = ids[:, None].repeat(1, self.count, 1)
        return wrong.scatter(2, place[..., None], self.members[group, other][..., None])


class _FlowTask(_Task):
    """Both outputs in every step: the first part of a batch denoises text, the rest pictures."""

    z_image: Tensor
    z_text: Tensor
    c_image: Tensor
    c_text: Tensor
    free_image: Tensor
    free_text: Tensor
    kept: Tensor

    def __init__(self, flow: FourFlow, generator: NanoGenerator, ids: Tensor, scenes: Scenes, recipe: GeneratorRecipe):
        super().__init__(ids, recipe.forms)
        self.flow, self.recipe = flow, recipe
        z_image, c_image = _image_tables(generator, scenes)
        z_text, c_text = _text_tables(generator, ids)
        free = generator.unconditional()
        assert free.c_image is not None and free.c_text is not None  # of both kinds
        tables = {"z_image": z_image, "c_image": c_image, "z_text": z_text, "c_text": c_text}
        tables |= {"free_image": torch.from_numpy(free.c_image), "free_text": torch.from_numpy(free.c_text)}
        tables["kept"] = new_scheduler(50).alphas_cumprod
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        cut = round(len(batch.rows) * (1 - self.recipe.image_share))
        terms = {"text": self.part("text", batch.rows[:cut], generator)}
        terms["image"] = self.part("image", batch.rows[cut:], generator)
        return {"loss": terms["text"] + terms["image"], **terms}

    def part(self, kind: str, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        device = self.kept.device
        place = torch.from_numpy(rows).to(device)
        c_text, form = self.some(self.c_text, rows, generator)
        z = self.z_image[place] if kind == "image" else self.z_text[place, form]
        chance, weight = torch.rand(2, generator=generator, device=device).tolist()
        single, image = self.recipe.single_share / 2, self.recipe.single_share
        image_weight = 1.0 if chance < single else 0.0 if chance < image else weight
        contexts = self.spoilt(self.c_image[place], self.free_image, c_text.float(), self.free_text, generator)
        time = torch.randint(1000, (len(rows),), generator=generator, device=device)
        noise = torch.randn(z.shape, generator=generator, device=device)
        return noise_loss(self.flow, kind, z, noise, time, self.kept[time], contexts, image_weight)

    def spoilt(
        self, c_image: Tensor, free_image: Tensor, c_text: Tensor, free_text: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Contexts with errors as of decoded ones, and the unconditional ones in some rows."""
        drawn = torch.rand(len(c_image), 3, 1, 1, generator=generator, device=c_image.device)
        free = drawn[:, 0] < self.recipe.free_share
        out = []
        for number, (c, other) in enumerate(((c_image, free_image), (c_text, free_text)), 1):
            error = torch.randn(c.shape, generator=generator, device=c.device)
            out.append(torch.where(free, other, c + self.recipe.context_noise * drawn[:, number] * error * c.std()))
        return out[0], out[1]


@torch.no_grad()
def _image_tables(generator: NanoGenerator, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Image latents as tokens, and image contexts, of all scenes."""
    pictures = pictures_of(scenes.images, generator.size.pixels)
    z = torch.cat([generator.as_tokens("image", generator.patch_latent(part)) for part in pictures.split(BATCH)])
    return z, torch.cat([generator.global_token(scenes.pooled)[:, None], generator.tokens(scenes.tokens)], 1)


@torch.no_grad()
def _text_tables(generator: NanoGenerator, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Text latents as tokens (n, forms, m, d), and text contexts (n, forms, t, d) fp16."""
    parts = ids.flatten(0, 1).split(BATCH)
    z = torch.cat([generator.as_tokens("text", generator.text_latent(part)) for part in parts])
    c = torch.cat([generator.text_context(part).half() for part in parts])
    return z.unflatten(0, ids.shape[:2]), c.unflatten(0, ids.shape[:2])


def _rows_of(generator: NanoGenerator, scenes: Scenes) -> Tensor:
    """Captions (n, forms, t) as numbers."""
    forms = [generator.vocabulary.encode(list(texts)) for texts in zip(*scenes.captions, strict=True)]
    return torch.stack(forms, 1)


def _captions(run: Run, generator: NanoGenerator, recipe: GeneratorRecipe, scenes: Scenes) -> Any:
    task = _CaptionTask(generator.vae, _rows_of(generator, scenes), recipe)
    result = run.stage("captions", task, RowNumbers("scenes", len(scenes.images)), recipe.captions)
    with torch.no_grad():
        rows = task.ids[:, [form - 1 for form in dict.fromkeys(recipe.forms)]].flatten(0, 1)
        means = torch.cat([generator.vae.encode(part)[0] for part in rows.split(BATCH)])
        generator.text_mean.copy_(means.mean(0))
        generator.text_scale.copy_((means - means.mean(0)).square().mean().sqrt())
    return result


def _tower(run: Run, generator: NanoGenerator, recipe: GeneratorRecipe, scenes: Scenes) -> Any:
    generator.cpu()
    _, contexts = _image_tables(generator, scenes)
    features = torch.cat([contexts[:, 0], contexts[:, 1:].mean(1)], 1)
    task = _TowerTask(generator.tower, _rows_of(generator, scenes), features, generator.vocabulary, recipe)
    return run.stage("tower", task, RowNumbers("scenes", len(scenes.images)), recipe.tower)


def _flow(run: Run, generator: NanoGenerator, recipe: GeneratorRecipe, scenes: Scenes) -> Any:
    generator.cpu().eval()
    task = _FlowTask(generator.flow, generator, _rows_of(generator, scenes), scenes, recipe)
    return run.stage("flow", task, RowNumbers("scenes", len(scenes.images)), recipe.flow)


def _drawer(
    folder: Path, generator: NanoGenerator, recipe: GeneratorRecipe, scenes: Scenes, world: World, progress: bool
) -> ConvDecoder:
    if (folder / "config.json").is_file():
        return ConvDecoder.load(folder, world.device)
    generator.cpu()
    pictures = pictures_of(scenes.images, recipe.size.pixels)
    z = torch.cat([generator.patch_latent(part) for part in pictures.split(BATCH)])
    options = {"steps": recipe.drawer_steps, "noise": recipe.drawer_noise, "progress": progress, "device": world.device}
    drawer = ConvDecoder.fit(z.flatten(2).transpose(1, 2), scenes.images, generator.drawer.size, **options)
    drawer.save(folder)
    return drawer


def _record(stage: Any) -> dict[str, Any]:
    """What the file of a generator says of a stage: its length, and some rows of its log."""
    log = (
        stage.log if len(stage.log) < 12 else [stage.log[i] for i in np.linspace(0, len(stage.log) - 1, 12).astype(int)]
    )
    return {"name": stage.name, "steps": stage.steps, "seconds": round(stage.seconds, 1), "log": list(log)}
