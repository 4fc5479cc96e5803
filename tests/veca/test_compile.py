import torch
from torch._dynamo.testing import CompileCounterWithBackend

from veca import VECA


def tiny(**options):
    torch.manual_seed(0)
    return VECA(**(dict(embed_dim=32, depth=1, num_heads=1, num_cores=8) | options))


def test_one_graph_for_all_sizes_of_a_budget():
    model = tiny(depth=2).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.forward_features, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for size in ((64, 96), (80, 48), (32, 32), (50, 61), (33, 95)):
        x = torch.randn(2, 3, *size)
        record, expected = compiled(x, 8), model.forward_features(x, 8)
        graphs.append(counter.frame_count)
        assert type(record) is type(expected) and record[4:] == expected[4:]
        for a, b in zip(record[:4], expected[:4], strict=True):
            torch.testing.assert_close(a, b)
    # one for multiples of the patch, one more for the sizes that need padding
    assert graphs[0] == graphs[1] == graphs[2] and graphs[3] == graphs[4] <= graphs[0] + 1


def test_compiled_training_step_equals_eager():
    model, x = tiny(num_classes=3), torch.randn(2, 3, 32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(x, 8).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0
