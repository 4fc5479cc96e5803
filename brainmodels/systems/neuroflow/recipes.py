"""Recipes of NeuroFlow: sizes, losses, training and sampling, as frozen dataclasses built by plain functions.

    recipe = dataclasses.replace(tiny(), kl_weight=0.001)

Stage 1 trains the NeuroVAE, stage 2 the flow between image tokens and its latents. Paper: NeuroFlow, arXiv 2604.09817.
"""

from dataclasses import dataclass, field, replace

from ...errors import BrainDataError, check_choice
from ...nn.flow import PATHS, SOLVERS
from ...training.recipe import LatentRecipe, TrainingStage

__all__ = ["MODES", "FlowSize", "NeuroFlowRecipe", "VAESize", "named", "nano", "paper", "tiny", "veca", "veca_cores"]

MODES = ("mean", "sample")


@dataclass(frozen=True)
class VAESize:
    """Sizes of a NeuroVAE; the defaults are the paper's.

    Attributes:
        channels: Channels of the levels; the last are the tokens.
        blocks: Residual blocks of an encoder level; a decoder level has one more.
        num_down: Number of levels, from the first, that halve the length, which begins at d * 2^num_down.
        hidden: Size to which the voxels are projected.
        retrieval_head: Whether there is a second output for retrieval, a perceptron on the length axis ("++" in the
            released code).
        token_projection: Whether a 1 x 1 convolution maps the last channels to the m tokens; needed where their numbers
            differ.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    blocks: int = 2
    num_down: int = 2
    hidden: int = 1024
    retrieval_head: bool = False
    token_projection: bool = False


@dataclass(frozen=True)
class FlowSize:
    """Sizes of the flow (XFM) and its path; the defaults are the paper's.

    Attributes:
        width: Width of its tokens; if it differs from that of the image tokens, there is a linear layer at either end.
        depth, heads: Number of blocks and of heads of the transformer.
        path: "linear", "cos_sin" (the released code) or "cos2_sin2"; see `brainmodels.nn.FlowPath`.
    """

    width: int = 1664
    depth: int = 12
    heads: int = 13
    path: str = "cos_sin"

    def __post_init__(self):
        check_choice("path", self.path, tuple(PATHS))


@dataclass(frozen=True)
class NeuroFlowRecipe(LatentRecipe):
    """All that decides how a NeuroFlow is built, trained and sampled.

    The loss of stage 1 ends with + cycle weight * cycle; a cycle weight of None is `cycle_share` times the total
    training variance, as the contrast's is.

    Attributes:
        vae, flow: Sizes of the networks.
        stage1, stage2: Training of the NeuroVAE and of the flow.
        cycle_weight, cycle_share: Weight of the cycle, see above.
        flow_target: Where the flow ends in training: "sample" of the posterior or its "mean". In use it is the mean.
        mode: How the flow is used where nothing else is asked for, both ways: "mean" for the expected latent or tokens,
            "sample" for the solver.
        solver, steps: Solver of the flow and its steps.
        and those of `LatentRecipe`.
    """

    vae: VAESize = field(default_factory=VAESize)
    flow: FlowSize = field(default_factory=FlowSize)
    stage1: TrainingStage = field(
        default_factory=lambda: TrainingStage(epochs=30, weight_decay=0.05, batch_size=64, seed=1024, patience=3)
    )
    stage2: TrainingStage = field(
        default_factory=lambda: TrainingStage(steps=50_000, clip_norm=1.0, ema_decay=0.9999, patience=3)
    )
    cycle_weight: float | None = None
    cycle_share: float = 0.064
    flow_target: str = "sample"
    mode: str = "mean"
    solver: str = "heun"
    steps: int = 20

    def __post_init__(self):
        super().__post_init__()
        check_choice("flow_target", self.flow_target, ("sample", "mean"))
        check_choice("solver", self.solver, SOLVERS)
        check_choice("mode", self.mode, MODES)
        if self.mode == "mean" and self.flow.path == "cos2_sin2":
            raise BrainDataError(
                "expected mode 'sample' with path 'cos2_sin2', which stands still at its ends, got 'mean'"
            )


def paper() -> NeuroFlowRecipe:
    """The published model, with its retrieval head, on raw OpenCLIP bigG tokens, single trials; no validation images.

    Numbers are those of the released scripts; summaries of the paper give 50 epochs for stage 1, and for stage 2 the
    batch and weight decay of stage 1. The loss weights belong to the 15,724 z-scored voxels of NSD subject 1. Responses
    are z-scored per session, test trials included, in the release. Under five hours on one A100-40G by the authors.
    """
    base = NeuroFlowRecipe()
    return replace(
        base,
        name="paper",
        vae=VAESize(retrieval_head=True),
        stage1=replace(base.stage1, patience=None),
        stage2=replace(base.stage2, patience=None),
        contrast_weight=1000.0,
        cycle_weight=1000.0,
        tokens="raw",
        response_scale="as_is",
        validation=0.0,
        mode="sample",
        solver="euler",
    )


def veca() -> NeuroFlowRecipe:
    """The 256 patch tokens of VECA base at 256 px, scaled; a flow of 130.1 M parameters. Not yet measured."""
    flow = FlowSize(width=768, heads=12, path="linear")
    return NeuroFlowRecipe("veca", token_width=768, flow=flow, flow_target="mean", stack="reduced_rank")


def veca_cores() -> NeuroFlowRecipe:
    """As `veca`, on the 64 cores of VECA base: latents a quarter of the size. Not yet measured."""
    return replace(veca(), name="veca_cores", num_tokens=64, vae=VAESize(channels=(16, 32, 64)))


def tiny() -> NeuroFlowRecipe:
    """A minute on two processor cores: 16 tokens of width 32, some 400 simulated voxels, 800 images with two trials."""
    return NeuroFlowRecipe(
        "tiny",
        num_tokens=16,
        token_width=32,
        vae=VAESize(channels=(4, 8, 16), hidden=128),
        flow=FlowSize(width=64, depth=4, heads=4, path="linear"),
        stage1=TrainingStage(steps=500, lr=1e-3, weight_decay=0.05, batch_size=64),
        stage2=TrainingStage(steps=1_200, lr=1e-3, batch_size=64, clip_norm=1.0, ema_decay=0.999),
        kl_weight=0.02,
        response_scale="train_z",
        precision="fp32",
    )


def nano() -> NeuroFlowRecipe:
    """A recipe for the shipped `veca_nano_patch8`: its 8 x 8 tokens are reduced to 4 x 4 of width 32.

    It trains in one to three minutes on one processor core for 1,500 simulated voxels and 2,600 trials. Steps, rates
    and the weight of the KL were chosen on the test images of another simulated subject than those of the published
    scores.
    """
    base = tiny()
    return replace(
        base,
        name="nano",
        reduce=(4, 32),
        stage1=replace(base.stage1, steps=600, lr=3e-3),
        stage2=replace(base.stage2, steps=500, lr=3e-3),
        kl_weight=0.1,
        flow_target="mean",
        stack="reduced_rank",
    )


_RECIPES = {"paper": paper, "veca": veca, "veca_cores": veca_cores, "nano": nano, "tiny": tiny}


def named(name: str) -> NeuroFlowRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    check_choice("a recipe", name, tuple(_RECIPES))
    return _RECIPES[name]()
