import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from veca import VECA, cli, core_attention
from veca.data import list_photographs, photograph
from veca.train import (
    DistillationTask,
    ImageBatches,
    Recipe,
    ResolutionSchedule,
    batches,
    distill,
    held_out_losses,
    load_backbone,
    load_teacher,
    paper_stage1,
    paper_stage2,
    tiny,
    tokens_of,
    train,
)
from veca.train.checkpoints import load_checkpoint

SCHEDULE = ResolutionSchedule(((0, (32, 48), (0.5, 0.5)),))


class PairTeacher(nn.Module):
    """The least that a teacher is: a module of a pair. Each patch's mean colour, through a fixed matrix."""

    def __init__(self, width=12):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, width, generator=torch.Generator().manual_seed(7)))
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        colours = nn.functional.avg_pool2d(images, 16).flatten(2).mT
        return (colours @ self.matrix).mean(1), colours @ self.matrix


class Noise:
    def __len__(self):
        return 64

    def batch(self, indices, step):
        draws = [torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(int(index))) for index in indices]
        return {"image": torch.stack(draws).repeat_interleave(16, -1).repeat_interleave(16, -2)}


def student(**options):
    torch.manual_seed(0)
    return VECA(**(dict(embed_dim=32, depth=2, num_heads=1, num_cores=24, output_dim=12) | options))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 255, (60, 90 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_the_loss_falls_at_every_budget_and_the_teacher_stays(tmp_path):
    teacher = PairTeacher()
    before = teacher.matrix.clone()
    task = DistillationTask(student(), teacher)
    held_out = Noise().batch(range(100, 132), 0)
    budgets = (8, 16, 24)
    with torch.no_grad():
        start = [sum(task.eval()(held_out, budget).values()).item() for budget in budgets]
    recipe = Recipe(steps=80, batch_size=16, warmup_steps=5, lr_max=5e-3, lr_min=1e-4)
    path = train(task, Noise(), recipe, tmp_path)
    with torch.no_grad():
        end = [sum(task.eval()(held_out, budget).values()).item() for budget in budgets]
    assert all(last < 0.3 * first for first, last in zip(start, end, strict=True))
    assert torch.equal(teacher.matrix, before) and not teacher.matrix.requires_grad and not teacher.training
    assert all(name.startswith("backbone.") for name in load_checkpoint(path).weights)


def test_no_gradient_from_the_final_cores_but_the_first():
    model = student()
    task = DistillationTask(model, PairTeacher())
    seen = []
    model.norm.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    sum(task(Noise().batch(range(4), 0), 16).values()).backward()
    gradient = seen[0].grad
    assert (gradient[:, 1:16] == 0).all()
    assert gradient[:, 0].abs().max() > 0 and gradient[:, 16:].abs().amax((0, 2)).min() > 0


def test_chunks_for_the_teacher_change_nothing():
    images = Noise().batch(range(5), 0)["image"]
    teacher = PairTeacher()
    whole = DistillationTask(student(), teacher).targets(images)
    chunks = DistillationTask(student(), teacher, teacher_pixels=2 * 32 * 32 + 5).targets(images)
    assert teacher.sizes == [5, 2, 2, 1]
    torch.testing.assert_close(chunks, whole)


def test_standardised_targets():
    images = Noise().batch(range(5), 0)["image"]
    raw = DistillationTask(student(), PairTeacher()).targets(images).patches
    out = DistillationTask(student(), PairTeacher(), standardize=True).targets(images).patches
    wanted = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(out, wanted)


def test_tokens_of_a_timm_vit_are_its_class_token_and_patches():
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True, reg_tokens=3).eval()
    images = torch.randn(2, 3, 48, 32)
    out = tokens_of(vit, images)
    sequence = vit.forward_features(images)
    torch.testing.assert_close(out.global_token, vit.forward_head(sequence))
    maps = vit.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(out.patches, maps.flatten(2).mT)


def test_tokens_of_a_vit_that_normalises_after_pooling():
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0, class_token=False, global_pool="avg", dynamic_img_size=True)
    images = torch.randn(2, 3, 48, 32)
    out = tokens_of(vit.eval(), images)
    torch.testing.assert_close(out.global_token, vit(images))
    torch.testing.assert_close(out.patches.std(-1, correction=0), torch.ones(2, 6), rtol=1e-3, atol=1e-3)


def test_tokens_of_convolutions_are_their_map():
    torch.manual_seed(0)
    net = load_teacher("test_efficientnet", "random")
    images = torch.randn(2, 3, 64, 96)
    out, features = tokens_of(net, images), net.forward_features(images)
    torch.testing.assert_close(out.patches[:, 1], features[:, :, 0, 1])
    torch.testing.assert_close(out.global_token, features.mean((2, 3)))
    with pytest.raises(ValueError, match="num_cores=None for a EfficientNet, which has no cores, got 8"):
        tokens_of(net, images, 8)


def test_teacher_from_a_local_file(tmp_path):
    torch.manual_seed(1)
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file(weights, tmp_path / "teacher.safetensors")
    teacher = load_teacher("test_vit", tmp_path / "teacher.safetensors")
    assert torch.equal(teacher.state_dict()["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
    with pytest.raises(ValueError, match=r"as a .safetensors file, got .*teacher.pt"):
        load_teacher("test_vit", tmp_path / "teacher.pt")


def test_image_batches_depend_on_index_and_step_alone(photos):
    source = ImageBatches(photos, SCHEDULE, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = source.batch([2, 5], 4)["image"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(source.batch([5, 2], 4)["image"].flip(0), first)
    assert first.shape[-1] == SCHEDULE(4)
    same_size = next(step for step in range(5, 50) if SCHEDULE(step) == SCHEDULE(4))
    assert not torch.equal(source.batch([2, 5], same_size)["image"], first)
    plain = ImageBatches(photos, SCHEDULE, augment=False)
    assert torch.equal(plain.batch([2], 4)["image"], plain.batch([2], same_size)["image"])


@pytest.mark.slow
def test_distill_at_changing_sizes_resumes_and_starts_a_second_stage(photos, tmp_path):
    recipe = dataclasses.replace(
        tiny(), steps=4, warmup_steps=1, batch_size=4, num_cores=16, resolutions=SCHEDULE.phases, save_every=2
    )
    teacher = load_teacher("test_vit", "random")
    straight = distill(recipe, teacher, photos, tmp_path / "straight")
    with pytest.raises(FloatingPointError):  # a second process dies at step 2
        distill(recipe, _Dies(teacher, recipe), photos, tmp_path / "resumed")
    resumed = distill(recipe, teacher, photos, tmp_path / "resumed")
    first, second = load_checkpoint(straight), load_checkpoint(resumed)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    second_stage = dataclasses.replace(recipe, steps=1, lr_max=0.0, lr_min=0.0)
    path = distill(second_stage, teacher, photos, tmp_path / "stage2", start_from=straight)
    assert all(torch.equal(load_checkpoint(path).weights[name], first.weights[name]) for name in first.weights)


def test_the_student_may_start_with_the_patch_embedding_of_its_teacher(photos, tmp_path, caplog):
    recipe = dataclasses.replace(tiny(), steps=1, warmup_steps=0, lr_max=0.0, batch_size=2, copy_patch_embedding=True)
    teacher = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, dynamic_img_size=True)
    distill(recipe, teacher, photos, tmp_path / "equal")
    student = VECA.from_pretrained(tmp_path / "equal/model")
    assert torch.equal(student.patch_embed.proj.weight, teacher.patch_embed.proj.weight)
    assert "random one" not in caplog.text
    distill(recipe, load_teacher("test_vit", "random"), photos, tmp_path / "other")
    assert "no patch embedding of the student's shape" in caplog.text


def test_held_out_losses_by_hand(photos):
    task = DistillationTask(student(rope_shift=0.08, rope_scale=2.0, drop_path_rate=0.5), PairTeacher())
    losses = held_out_losses(task, photos, (32, 48), (8, 24), batch_size=3)
    assert task.training and list(losses)[:2] == ["32 px, 8 cores", "32 px, 24 cores"]
    plain = ImageBatches(photos, ResolutionSchedule(((0, (48,), (1.0,)),)), augment=False)
    with torch.no_grad():
        single = [sum(task.eval()(plain.batch([index], 0), 8).values()).item() for index in range(8)]
    assert losses["48 px, 8 cores"] == pytest.approx(np.mean(single), rel=1e-5)
    assert losses.pop("mean") == pytest.approx(np.mean(list(losses.values())))


class _Dies(nn.Module):
    """A teacher that gives NaN from the third batch on."""

    def __init__(self, teacher, recipe):
        super().__init__()
        self.teacher, self.calls = teacher, 0

    def forward(self, images):
        self.calls += images.shape[0] == 4
        out = tokens_of(self.teacher, images)
        return out if self.calls <= 2 else (out.global_token * torch.nan, out.patches)


def test_grids_that_differ_are_refused():
    task = DistillationTask(student(patch_size=8), PairTeacher())
    with pytest.raises(ValueError, match=r"got \(2, 16, 12\) and \(2, 4, 12\)"):
        task(Noise().batch(range(2), 0))


def test_recipes_of_the_paper():
    one, two = paper_stage1(), paper_stage2()
    for recipe in (one, two):
        assert (recipe.model, recipe.batch_size, recipe.num_cores) == ("veca_base_patch16", 768, 64)
        assert (recipe.optimizer, recipe.decay, recipe.precision) == ("normuon", "paper", "bf16")
        assert (recipe.rope_shift, recipe.rope_scale, recipe.budgets) == (0.08, 2.0, "weighted")
        assert recipe.ema_decay is None and recipe.clip_norm is None
    assert (one.lr_max, one.lr_min, one.weight_decay) == (4e-4, 5e-5, 0.015)
    assert (two.steps, two.warmup_steps, two.lr_max, two.lr_min, two.weight_decay) == (50_000, 7_000, 8e-5, 3e-5, 0.01)


def test_command_line(photos, tmp_path, capsys):
    words = f"--data {photos} --held-out {photos} --teacher test_vit --weights random --out {tmp_path / 'run'}"
    sizes = "--steps 2 --warmup-steps 1 --batch-size 4 --device cpu"
    cli.main(["distill", *words.split(), *sizes.split()])
    path, cosine = capsys.readouterr().out.strip().splitlines()
    assert '"before": ' in cosine and '"after": ' in cosine
    assert path == str(tmp_path / "run/checkpoints/step-00000002")
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert len(last["validation"]) == 17 and last["step"] == 1
    model = VECA.from_pretrained(tmp_path / "run/model")
    weights = load_backbone(VECA(embed_dim=192, depth=6, num_heads=3, output_dim=64), path).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.rope_scale == 2 and model.trained_budgets == tuple(range(8, 65, 8))
    with pytest.raises(SystemExit, match=r"veca distill: expected the recipe of the run in .*seed=0, not 5"):
        cli.main(["distill", *words.split(), *sizes.split(), "--seed", "5"])


@pytest.mark.slow
def test_a_converted_student_recovers_its_teacher(photos, tmp_path):
    """The cosine is that of its definition, rises, and the weights written are those of the trained student."""
    torch.manual_seed(0)
    teacher = load_teacher("test_vit", "random")
    for block in teacher.blocks:  # a fresh ViT hardly attends, and then there is nothing to recover
        block.attn.qkv.weight *= 4
        block.attn.proj.weight *= 4
    recipe = dataclasses.replace(
        tiny(), model="converted", num_cores=8, steps=60, warmup_steps=4, batch_size=8, lr_max=1e-3, lr_min=1e-4,
        resolutions=((0, (64,), (1.0,)),), save_every=60, augment=False,
    )  # fmt: skip
    distill(recipe, teacher, photos, tmp_path, held_out=photos)
    report = json.loads((tmp_path / "cosine.json").read_text())
    assert report["size"] == 64 and report["before"] < 0.85 and report["after"] > 0.92

    options = dict(num_classes=0, dynamic_img_size=True, no_embed_class=True, reg_tokens=7)
    trained = timm.create_model("test_vit", attn_layer=core_attention(8), **options).eval()
    trained.load_state_dict(load_file(tmp_path / "model/model.safetensors"))
    images = ImageBatches(photos, ResolutionSchedule(((0, (64,), (1.0,)),)), augment=False)
    images = images.batch(range(len(images)), 0)["image"]
    with torch.no_grad():
        ours, wanted = trained.forward_features(images)[:, 8:], teacher.forward_features(images)[:, 1:]
    cosine = (ours * wanted).sum(-1) / ours.norm(dim=-1) / wanted.norm(dim=-1)
    assert report["after"] == pytest.approx(cosine.mean().item(), abs=1e-5)


def test_without_data_the_photographs_are_taken(tmp_path, capsys, monkeypatch):
    opened, load_image = set(), batches.load_image
    monkeypatch.setattr(batches, "load_image", lambda path, *rest: (opened.add(path), load_image(path, *rest))[1])
    words = f"--teacher test_vit --weights random --student converted --out {tmp_path} --steps 2 --warmup-steps 1"
    cli.main(["distill", *words.split(), "--batch-size", "2", "--device", "cpu"])
    assert "cosine between patches of student and teacher" in capsys.readouterr().out
    assert opened == {photograph(name).path for name in list_photographs()}
