"""Convert a checkpoint of Optimus: what `veca brain convert-optimus` does."""

from pathlib import Path

from ..systems.unibrain.optimus import convert_optimus as convert_checkpoint

__all__ = ["convert_optimus"]


def convert_optimus(file: Path, out: Path, bert: Path, gpt2: Path) -> None:
    """Write Optimus, the caption model of Versatile Diffusion, as safetensors for stock classes.

    Args:
        file: Checkpoint, such as optimus-vae.pth. Only tensors are read from it.
        out: Folder to write; it must not exist.
        bert: Local folder of the tokenizer of the encoder, bert-base-cased.
        gpt2: Local folder of the tokenizer of the decoder, gpt2.
    """
    try:
        print(convert_checkpoint(file, out, bert, gpt2))
    except (OSError, ValueError) as error:
        raise SystemExit(f"veca brain convert-optimus: {error}") from error
