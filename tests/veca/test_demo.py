import json
import math
import re
import subprocess
import sys
import time

import pytest
import torch
from jinja2 import UndefinedError

import veca
from veca.demo import DemoSettings, agreement, check_request, conclusions, run_demo
from veca.demo.report import write_html
from veca.report import machine, page


def timed(size, num_cores, median, peak=None, predicted=None, note=""):
    times = [] if median is None else [median]
    row = {"size": size, "num_cores": num_cores, "median_s": median, "times_s": times, "peak_bytes": peak}
    return row | {"predicted_s": predicted, "note": note}


def flop(size, num_cores, attention, block, model):
    row = {"size": size, "num_cores": num_cores, "patches": (size // 16) ** 2}
    return row | {"attention": attention, "block": block, "model": model}


def test_ratios_are_vit_over_veca_and_absent_where_a_side_is():
    flops = [flop(64, None, 8, 20, 90), flop(64, 4, 4, 10, 60), flop(128, None, 9, 9, 9), flop(128, 4, 3, 3, 3)]
    rows = conclusions.ratio_rows([timed(64, 4, 2.0, 50), timed(64, None, 3.0, 40), timed(128, 4, 1.0, 7)], flops)
    common = {"pairs": 1, "num_cores": 4, "flops_attention": 2, "flops_block": 2, "flops_model": 1.5}
    assert rows[0] == common | {"size": 64, "time": 1.5, "memory": 0.8}
    assert (rows[1]["time"], rows[1]["memory"], rows[1]["flops_model"]) == (None, None, 3)
    assert conclusions.headline(rows) == rows[0]
    assert conclusions.headline(rows[1:]) is None


def test_the_headline_is_the_largest_size_and_budget_of_three_pairs():
    """A larger size that ran once or twice does not count, unless no size has three."""
    cases = ((64, 8, 9.0, 5), (128, 8, 7.0, 3), (128, 64, 5.0, 3), (256, 64, 1.1, 2), (512, 64, None, 0))
    rows = [dict(zip(("size", "num_cores", "time", "pairs"), case, strict=True)) for case in cases]
    assert conclusions.headline(rows)["time"] == 5.0 and conclusions.headline(rows[3:])["time"] == 1.1


def test_other_programs_make_a_machine_busy():
    machine = {"cpu_count": 8, "torch_threads": 4}
    found = [bool(conclusions.busy(others, machine)) for others in (0.1, 4.5, 4.7, 7.9, None)]
    assert found == [False, False, True, True, False]
    assert conclusions.busy(1.5, {"cpu_count": 2, "torch_threads": 2}) == "other programs used 1.5 of 2 processor cores"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_cores_of_other_programs_are_counted():
    """A program that is always busy uses one core, more on a machine with more to do; our own work does not count."""
    others = machine.OtherPrograms()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(1)
        used = others.cores()
        other.kill()
    assert used > 0.3


def test_exponents_are_those_between_the_two_largest_sizes():
    flops = [flop(size, None, 1, 1, 1) for size in (64, 128, 256)]
    rows = [timed(size, None, t) for size, t in ((64, 1.0), (128, 1.0), (256, 8.0))]
    (slope,) = conclusions.slopes([*rows, timed(512, 8, 1.0)], flops)
    assert slope == {"num_cores": None, "from_size": 128, "to_size": 256, "exponent": 1.5}  # 8 times for 4 times P


def test_notes_tell_what_was_left_out():
    rows = [timed(64, 8, 1.0), timed(128, None, None, predicted=61.27), timed(96, None, 2.0, note="in place of 128 px")]
    notes = conclusions.timing_notes(rows, [flop(64, 8, 1, 1, 1)])
    assert notes[0] == "128 px: there was no time left for the ViT (61.3 s predicted)."
    assert notes[1] == "96 px was measured in place of 128 px." and len(notes) == 2
    assert conclusions.timing_notes(rows[:1], [flop(64, 8, 1, 1, 1)]) == []


@pytest.mark.parametrize(("seconds", "noted"), [(4.0, False), (5.0, False), (6.0, True), (1.0, False)])
def test_a_machine_that_slows_down_is_noted(seconds, noted):
    flops = [flop(64, 8, 1, 1, 1e9), flop(128, 8, 1, 1, 4e9)]
    notes = conclusions.timing_notes([timed(64, 8, 1.0), timed(128, 8, seconds)], flops)
    assert [note.startswith("The machine slowed down") for note in notes] == [True] * noted


def test_numbers_as_text():
    texts = [page.seconds(0.0123), page.seconds(2.0), page.seconds(123.4), page.megabytes(2.5e9), page.gflops(5.654e12)]
    assert texts == ["12.3 ms", "2.00 s", "123 s", "2.50 GB", "5.65 TFLOPs"]
    assert [page.times(x) for x in (0.853, 1.234, 7.77, 21.4)] == ["0.85×", "1.23×", "7.8×", "21×"]
    assert [page.percent(x) for x in (0.055, 0.5, 0.0)] == ["5.5\xa0%", "50\xa0%", "0\xa0%"]
    assert [page.listed(x) for x in ([8], [8, 16], [8, 16, 64])] == ["8", "8 and 16", "8, 16 and 64"]


def test_the_machine_is_described():
    facts = machine.describe_machine(torch.device("cpu"), torch.float32)
    assert facts["torch"] == torch.__version__.partition("+")[0] or facts["torch"] == torch.__version__
    assert facts["dtype"] == "float32" and facts["torch_threads"] == torch.get_num_threads()
    assert facts["device"].startswith("CPU, ") and len(facts["device"]) > 6
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", facts["date"])
    json.dumps(facts)


def tiny():
    torch.manual_seed(0)
    return veca.VECA(embed_dim=32, depth=2, num_heads=2, num_cores=8, trained_budgets=[4, 8]).eval()


def compare(sharpened, blocks=(0, 1)):
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    rows = agreement.compare_implementations(tiny(), ["one", "two"], images, 4, blocks, sharpened)
    return rows, {row["impl"]: row for row in conclusions.summarise_agreement(rows, torch.float32)}


@pytest.mark.parametrize("sharpened", [False, True])
def test_implementations_agree_on_real_tokens(sharpened):
    rows, summary = compare(sharpened)
    assert {(row.photograph, row.block) for row in rows} == {("one", 0), ("one", 1), ("two", 0), ("two", 1)}
    for impl in ("reference", "sdpa"):
        assert summary[impl]["agrees"] is True and 0 < summary[impl]["relative_rms"] < 2e-6
        assert summary[impl]["comparisons"] == 4 and summary[impl]["failed"] == 0
    assert summary["sdpa"]["score_std"] == 4.0 if sharpened else summary["sdpa"]["score_std"] < 1


def test_what_is_compared_is_what_the_blocks_compute():
    """The op on the captured q, k, v, projected, is the block's own attention output."""
    model, seen = tiny(), []
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    handle = model.blocks[1].attn.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.inference_mode():
        call = agreement._attention_calls(model, image, 4)[1]
        handle.remove()
        out = agreement.core_periphery_attention(
            call.q, call.k, call.v, call.num_cores, patch_rope=call.patch_rope, impl="reference"
        )
        torch.testing.assert_close(model.blocks[1].attn.proj(out.transpose(1, 2).flatten(2)), seen[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton runs here")
def test_a_refusal_is_shown():
    _, summary = compare(False)
    row = summary["triton"]
    assert row["agrees"] is None and row["failed"] == 4 and row["max_abs"] is None
    assert row["failure"].startswith("impl='triton' cannot take this call: ")


@pytest.mark.parametrize(("damage", "worst"), [(1e-3, pytest.approx(1e-3, rel=0.2)), (math.nan, None)])
def test_a_wrong_implementation_does_not_agree(monkeypatch, damage, worst):
    right = agreement.core_periphery_attention

    def wrong(*args, impl, **options):
        out = right(*args, impl=impl, **options)
        return out * (1 + damage) if impl == "sdpa" else out

    monkeypatch.setattr(agreement, "core_periphery_attention", wrong)
    _, summary = compare(False, blocks=[1])
    assert summary["sdpa"]["agrees"] is False and summary["reference"]["agrees"] is True
    if worst is not None:
        assert summary["sdpa"]["relative_rms"] == worst


def test_one_failed_comparison_is_no_agreement():
    good = agreement.Agreement("sdpa", 64, 0, False, "one", 1.0, 1e-7, 1e-7, 1.0, None)
    bad = good._replace(photograph="two", max_abs=None, relative_rms=None, failure="out of memory")
    (row,) = conclusions.summarise_agreement([good, bad], torch.float32)
    assert row["agrees"] is False and row["failed"] == 1 and row["failure"] == "out of memory"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    for package in ("skimage", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("demo")
    settings = DemoSettings(
        out=out,
        sizes=(96, 64),
        budgets=(8, 16),
        photographs=("astronaut", "flower"),
        time_limit=600,  # a loaded machine must not leave out pictures or runs
        model="veca_nano_patch16",
        device="cpu",
    )
    record = run_demo(settings, progress=False)
    return out, record


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_record_is_valid_json_and_what_run_demo_returned(demo):
    out, record = demo
    saved = strict((out / "report.json").read_text())
    assert saved == json.loads(json.dumps(record))
    assert saved["settings"]["sizes"] == [64, 96] and saved["machine"]["device_type"] == "cpu"


def test_ratios_are_quotients_of_the_reported_times(demo):
    out, _ = demo
    record = strict((out / "report.json").read_text())
    timings = {(row["size"], row["num_cores"]): row for row in record["timings"]}
    assert set(timings) == {(size, cores) for size in (64, 96) for cores in (None, 8, 16)}
    for row in timings.values():
        times = sorted(row["times_s"])
        assert times[0] > 0 and row["low_s"] == times[0] and row["high_s"] == times[-1]
        assert row["median_s"] == pytest.approx((times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2)
    for row in record["ratios"]:
        ours, theirs = timings[row["size"], row["num_cores"]], timings[row["size"], None]
        assert row["time"] == pytest.approx(theirs["median_s"] / ours["median_s"])
        assert row["memory"] == pytest.approx(theirs["peak_bytes"] / ours["peak_bytes"])
    assert record["headline"]["size"] == 96 and record["headline"]["num_cores"] == 16


def test_flops_in_the_record_are_those_of_the_formulas(demo):
    record = demo[1]
    veca_row = conclusions.find(record["flops"], 96, 16)
    assert veca_row["attention"] == 8 * 52 * 192**2 + 4 * 192 * (2 * 36 * 16 + 16**2)
    counted = [row for row in record["flops"] if row["model_counted"] is not None]
    assert len(counted) == 6 and all(row["model"] == row["model_counted"] for row in counted)
    assert record["equal_flops_px"]["8"] <= record["equal_flops_px"]["16"]


def test_both_models_have_the_same_shape(demo):
    ours, theirs = demo[1]["models"]
    for key in ("width", "depth", "heads"):
        assert ours[key] == theirs[key]
    assert ours["parameters"] == 2_833_103 and abs(theirs["parameters"] / ours["parameters"] - 1) < 0.05


def test_the_page_stands_alone_and_shows_only_files_that_exist(demo):
    out, _ = demo
    text = (out / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {"times.png", "memory.png", "report.json", "photograph_astronaut.png"} <= set(links)
    for link in links:
        assert (out / link).is_file(), link
    for file in out.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000
        assert file.name in links
    assert "http" not in text and "<script" not in text and "@import" not in text


def test_the_page_says_what_must_be_said(demo):
    out, record = demo
    text = (out / "report.html").read_text()
    first = text[: text.index("<h2>Time")]
    assert "weights are untrained" in first and "Where VECA loses" in first
    assert record["machine"]["cpu"] in first and f"torch {record['machine']['torch']}" in first
    ratio = record["headline"]["time"]
    verdict = "faster" if ratio >= 1 else "slower"
    assert f"{page.times(max(ratio, 1 / ratio))} {verdict}" in first
    for num_cores in (16, None):
        assert page.seconds(conclusions.find(record["timings"], 96, num_cores)["median_s"]) in first
    for row in record["ratios"]:
        assert f'<span class="{"better" if row["time"] >= 1 else "worse"}">({page.times(row["time"])})</span>' in text
    assert "CC BY 2.0" in text and "640 × 427 px" in text  # whose the flower is, and its native size
    assert "veca demo --sizes 64 96" in re.sub(r" \\\n *", " ", text)
    for row in record["timings"]:
        assert page.seconds(row["median_s"]) in text


def test_the_page_survives_missing_measurements(demo, tmp_path):
    """The ViT did not fit into the time, an implementation differs, the machine was slow."""
    record = json.loads(json.dumps(demo[1]))
    for row in record["timings"]:
        if row["num_cores"] is None:
            row |= {"median_s": None, "times_s": [], "peak_bytes": None, "predicted_s": 77.7}
    record["ratios"] = conclusions.ratio_rows(record["timings"], record["flops"])
    record["headline"] = conclusions.headline(record["ratios"])
    record["agreement"][0] |= {"agrees": False, "relative_rms": 0.5}
    record["flops"][0]["model_counted"] = 1
    record["notes"], record["busy"] = ["<slow> machine"], "others <used> it"
    write_html(record, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "77.7 s predicted" in text and "differs by more than" in text and "disagree" in text
    assert "&lt;slow&gt; machine" in text and "<slow>" not in text
    assert "The machine was busy: others &lt;used&gt; it" in text[: text.index("<h2>")]


def test_names_on_the_page_are_escaped(demo, tmp_path):
    script = "<script>alert(1)</script>"
    record = json.loads(json.dumps(demo[1]))
    record["models"][1]["name"] = record["photographs"][0]["name"] = record["machine"]["device"] = script
    record["settings"]["model"] = script
    write_html(record, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_a_name_without_a_value_is_an_error():
    with pytest.raises(UndefinedError, match="'record' is undefined"):
        page.render("demo.html")


def test_the_page_links_to_a_brain_only_where_there_is_one(demo, tmp_path):
    write_html(demo[1], tmp_path)
    assert "brain/report.html" not in (tmp_path / "report.html").read_text()
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain/report.html").touch()
    write_html(demo[1], tmp_path)
    assert 'href="brain/report.html"' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (64, 100)}, r"multiples of 16 pixels, at least 32, got \(64, 100\)"),
        ({"sizes": (16,)}, "at least 32"),
        ({"sizes": ()}, "multiples of 16"),
        ({"budgets": (0, 8)}, r"at least 1 core, got \(0, 8\)"),
        ({"time_limit": 0}, "above 0, got 0"),
    ],
)
def test_settings_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**options)


def test_settings_order_means_nothing():
    settings = DemoSettings(sizes=(512, 256, 512), budgets=(64, 8))
    assert settings.sizes == (256, 512) and settings.budgets == (8, 64)


def test_requests_that_cannot_work_are_refused_before_anything_runs(monkeypatch):
    with pytest.raises(ValueError, match=r"one of veca_nano_patch16, .*got 'vit'"):
        check_request(DemoSettings(model="vit"))
    with pytest.raises(ValueError, match="got 'veca_nano_patch8'"):  # it would face a ViT of patch 16
        check_request(DemoSettings(model="veca_nano_patch8"))
    with pytest.raises(ValueError, match="did you mean retina"):
        check_request(DemoSettings(photographs=("retinna",)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'"):
        check_request(DemoSettings(device="cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'matplotlib, which is missing; pip install "veca\[brain\]"'):
        check_request(DemoSettings())
