import sys

import pytest
import torch

from veca import VECA, cli
from veca.inspect.export import export_model


def tiny(**options):
    torch.manual_seed(0)
    model = VECA(**(dict(embed_dim=32, depth=2, num_heads=1, num_cores=8, trained_budgets=[4, 8]) | options)).eval()
    with torch.no_grad():  # so that the second block's positions depend on the image
        model.core_steps[0].alpha.fill_(1.0)
        model.core_steps[0].head.weight.normal_()
    return model


def images(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
def test_onnx_equals_the_model_at_sizes_it_was_not_made_with(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny(num_classes=5, core_logit_log_scale=100, rope_layout="half", global_from="core0+patch_mean")
    file = tmp_path / "new" / "model.onnx"
    rows = export_model(model.train(), file, num_cores=4)
    assert model.training and model.blocks[0].attn.impl == "auto" and model.norm.weight.requires_grad
    model.eval()
    assert [row[:3] for row in rows] == [(1, 256, 384), (3, 143, 79)]
    assert max(row.difference for row in rows) < 1e-4
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["global_token", "patches", "cores", "core_xy", "logits"]
    for shape in ((1, 32, 112), (4, 208, 61), (2, 17, 50)):
        x = images(*shape)
        with torch.no_grad():
            record = model.forward_features(x, 4)
            expected = [*record[:4], model.forward_head(record)]
        for name, got, wanted in zip(names, session.run(None, {"images": x.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=2e-5, msg=name)
    assert expected[3].std(0).max() > 1e-3  # positions differ from image to image


@pytest.mark.filterwarnings("ignore")
def test_torchs_older_exporter_takes_a_model_too(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = tiny(num_classes=5), tmp_path / "model.onnx"
    torch.onnx.export(model, (images(1, 64, 48),), file, dynamo=False, input_names=["images"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    x = torch.randn(1, 3, 64, 48)
    (got,) = session.run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=0, atol=1e-5)


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    other = tiny(global_from="patch_mean")

    class Loaded:
        def module(self):
            return lambda x: other.forward_features(x)[:4]

    monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
    monkeypatch.setattr(torch.export, "save", lambda program, file: None)
    monkeypatch.setattr(torch.export, "load", lambda file: Loaded())
    with pytest.raises(RuntimeError, match=r"equal the model within 0.001, it differs by \d"):
        export_model(tiny(), tmp_path / "model.pt2")
    same = export_model(other, tmp_path / "model.pt2")
    assert max(row.difference for row in same) < 1e-6  # rounding, on CPUs whose products depend on the memory layout


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="format of onnx or pt2, got 'trt'"):
        export_model(tiny(), tmp_path / "model.trt")
    with pytest.raises(ValueError, match="num_cores from 1 to 8, the core bank, got 9"):
        export_model(tiny(), tmp_path / "model.pt2", num_cores=9)
    with pytest.raises(TypeError, match="model to be a VECA, got Linear; use torch"):
        export_model(torch.nn.Linear(2, 2), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnx\w*, which is not installed; pip install .* onnxruntime"):
        export_model(tiny(), tmp_path / "model.onnx")


def test_the_command_writes_pt2_and_reports_every_check(tmp_path, capsys):
    model = tiny(patch_size=8, on_odd="crop")
    model.save_pretrained(tmp_path / "model")
    cli.main(["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "a.pt2"), "--num-cores", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 x 128 x 192 px, 4 cores: largest relative difference ")
    assert all(float(line.rsplit(" ", 1)[1]) < 1e-4 for line in lines[:2])
    assert lines[2] == str(tmp_path / "a.pt2")
    exported, x = torch.export.load(tmp_path / "a.pt2").module(), images(5, 45, 72)
    for got, wanted in zip(exported(x), model.forward_features(x, 4)[:4], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_the_command_ends_mistakes_in_one_line(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="veca export: expected a format of onnx or pt2, got 'bin'"):
        cli.main(["export", "--model", str(tmp_path), "--out", str(tmp_path / "a.bin")])
