import subprocess
import sys

PROGRAM = """
import sys

class Hiding:
    # a finder that does not know some packages, as where they are not installed

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        hidden = {"triton", "xformers", "transformers", "diffusers", "open_clip", "nibabel", "nilearn", "h5py"}
        hidden |= {"sklearn", "skimage", "torchmetrics", "himalaya", "mne", "matplotlib", "pandas"}
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch
import veca.data
assert not {"skimage", "sklearn", "torchvision.transforms.v2"} & set(sys.modules)
import veca
assert not torch.cuda.is_initialized()
model = veca.create_model("veca_nano_patch16", depth=2)
record = model.forward_features(torch.zeros(1, 3, 40, 24), num_cores=16)
assert record.patches.isfinite().all() and record.grid_size == (3, 2)
assert "triton" not in sys.modules

# what the commands do without the extra: list layouts, write arrays without pictures, say what is missing
import contextlib, io, logging
from pathlib import Path
import numpy as np
from PIL import Image
logging.disable()
from veca import cli

def run(*words):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        try:
            cli.main(list(words))
        except SystemExit as ended:
            return told.getvalue() + str(ended.code or "")
    return told.getvalue()

assert "nsd_native" in run("brain", "layouts")
for name in ("drawer", "evaluate", "train"):
    told = run("brain", name, "--out", "x")
    assert told.startswith(f"veca brain {name}: brainmodels.") and "needs scikit-learn; install" in told, told
folder = Path(sys.argv[1])
Image.new("RGB", (40, 24)).save(folder / "a.png")
run("features", str(folder / "a.png"), "--out", str(folder / "out"), "--model", "veca_nano_patch8")
assert [path.name for path in (folder / "out").iterdir()] == ["a.npz"]
assert np.load(folder / "out/a.npz")["patches"].shape[2] == 192
"""


def test_import_is_silent_and_needs_neither_triton_nor_the_brain_extra(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
