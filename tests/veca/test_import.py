import subprocess
import sys

PROGRAM = """
import sys

class Hiding:
    # a finder that does not know some packages, as where they are not installed

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        hidden = {"triton", "transformers", "diffusers", "nilearn", "h5py", "sklearn", "mne", "matplotlib"}
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch
import veca
assert not torch.cuda.is_initialized()
model = veca.create_model("veca_nano_patch16", depth=2)
record = model.forward_features(torch.zeros(1, 3, 40, 24), num_cores=16)
assert record.patches.isfinite().all() and record.grid_size == (3, 2)
assert "triton" not in sys.modules
"""


def test_import_is_silent_and_needs_neither_triton_nor_the_brain_extra():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
