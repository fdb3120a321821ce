"""Segmentation from training to masks, on few and small images."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from isoconv.evaluation.segment_comparison import load_counts
from isoconv.evaluation.segmentation import evaluate, predict, segmentation_loss, train
from PIL import Image
from torchmetrics.segmentation import DiceScore

import isoconv
from isoconv import training
from isoconv.cli.main import main
from isoconv.deploy.export import export_run
from isoconv.evaluation import segmentation
from isoconv.evaluation.comparison import compare
from isoconv.evaluation.measuring import evaluate as evaluate_classifier
from isoconv.evaluation.prediction import Predictor
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.tasks.dice import pooled

pytestmark = pytest.mark.usefixtures("few_vessels")


@pytest.fixture(scope="module")
def config(few_vessels: None, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    out = tmp_path_factory.mktemp("runs") / "sre"
    small = {"width": 2, "epochs": 2, "batch_size": 4, "size": 16, "device": "cpu", "kernel_sizes": (5, 3, 3, 3)}
    return TrainConfig("vessels", "sre_unet", out, engine="reference", **small)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(config: TrainConfig) -> RunDir:
    return train(config)


@pytest.fixture(scope="module")
def volumes(config: TrainConfig) -> RunDir:
    options = {"data": "vessels3d", "model": "sre_unet_3d", "kernel_sizes": (3,) * 4, "epochs": 1}
    return train(replace(config, out=config.out.parent / "volumes", **options))  # type: ignore[arg-type]


def test_loss_of_perfect_and_of_wrong_logits() -> None:
    labels = torch.randint(0, 3, (2, 6, 5))
    right = 50.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert segmentation_loss(right, labels) < 1e-5
    assert segmentation_loss(-right, labels) > 25


def test_dice_part_of_the_loss_by_hand() -> None:
    labels = torch.tensor([[[0, 1]]])
    logits = torch.zeros(1, 2, 1, 2)  # one half everywhere: overlap 1/2, sizes 1 and 1, smoothed by 1
    assert segmentation_loss(logits, labels).item() == pytest.approx(np.log(2) + 1 - 2 / 3)


def test_training_writes_a_run(run: RunDir) -> None:
    assert [set(line) >= {"val_loss", "val_dice", "train_loss"} for line in run.metrics()] == [True, True]
    assert run.model_info["task"]["kind"] == "segmentation"


def test_a_resumed_training_ends_as_an_unbroken_one(
    run: RunDir, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = replace(config, out=tmp_path / "again")

    def stop(self: segmentation.Segmenter) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(segmentation.Segmenter, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            train(again)
    weights = train(again, resume=True).load_model().state_dict()
    for name, value in run.load_model().state_dict().items():
        assert torch.equal(weights[name], value), name


def test_a_training_that_was_stopped_is_said_to_be_early(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    early = RunDir(shutil.copytree(run.path, tmp_path / "early"))
    early.write_metrics(run.metrics()[:1])
    monkeypatch.setattr(segmentation, "load", lambda *_: 1 / 0)  # what comes next
    for each, said in ((run, False), (early, True)):
        caplog.clear()
        with pytest.raises(ZeroDivisionError):
            evaluate(each)
        assert ("early: 1 of 2 epochs trained; --resume continues" in caplog.text) is said


def test_evaluation_is_exact_at_right_angles_and_flips(run: RunDir) -> None:
    result = evaluate(run)
    rows = {row["name"]: row for row in result["conditions"]}
    for name in ("rot90", "rot180", "rot270", "flip_h", "flip_w"):
        assert rows[name]["classes"] == pytest.approx(rows["rot0"]["classes"], abs=1e-3)
    assert result["summary"]["rotated_worst"] == min(r["dice"] for r in rows.values() if r["group"] == "rotation")
    assert (run.path / "figures" / "dice.png").stat().st_size > 5000
    assert json.loads((run.path / "segmentation.json").read_text()) == result


def test_dice_is_that_of_torchmetrics(run: RunDir) -> None:
    """Of the whole images, which need no mask and no turning."""
    test = segmentation.load("vessels", 16).test
    with torch.inference_mode():
        found = run.load_model()(test.images / 255).argmax(1)
    metric = DiceScore(3, average="none", aggregation_level="global", input_format="index")
    expected = metric(found, test.labels.long()).tolist()
    (row,) = (row for row in evaluate(run)["conditions"] if row["group"] == "unmasked")
    assert list(row["classes"].values()) == pytest.approx(expected, abs=1e-6)
    assert row["dice"] == pytest.approx(np.mean(expected[1:]), abs=1e-6)


def test_intervals_hold_what_they_are_of(run: RunDir) -> None:
    result = evaluate(run)
    for summary in (result["summary"], *result["classes"].values()):
        for name in ("upright", "upright_unmasked", "rotated_mean", "right_angles", "flips"):
            low, high = summary[f"{name}_ci"]
            assert 0 <= low <= summary[name] <= high <= 1
    upright = result["conditions"][0]
    assert upright["dice_ci"] == result["summary"]["upright_ci"]
    assert upright["classes_ci"] == {label: summary["upright_ci"] for label, summary in result["classes"].items()}


def test_what_each_image_adds_is_kept(run: RunDir) -> None:
    result, counts = evaluate(run), load_counts(run)
    assert counts.shape == (len(result["conditions"]), 4, 3, 3)
    assert pooled(counts)[0].tolist() == list(result["conditions"][0]["classes"].values())
    assert torch.equal(counts[-1, ..., 1:].sum(1), torch.full((4, 2), 16 * 16))  # all pixels of the whole images


def test_a_class_that_is_nowhere_has_no_dice(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but background in the masks, and a network that sees nothing else."""

    class Blind(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(len(x), 3, *x.shape[2:])

    data = segmentation.load("vessels", 16)
    empty = replace(data.test, labels=torch.zeros_like(data.test.labels))
    monkeypatch.setattr(segmentation, "load", lambda *_: replace(data, test=empty))
    monkeypatch.setattr(RunDir, "load_model", lambda _: Blind())
    result = evaluate(run)
    assert result["classes"]["background"]["upright"] == 1
    for summary in (result["summary"], result["classes"]["vessel"]):
        assert set(summary.values()) == {None}
    assert (run.path / "figures" / "dice.png").stat().st_size > 5000


def test_dice_of_perfect_masks_is_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows: the grey levels are the labels, wherever the image is turned by right angles."""

    class Knows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -(x - torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)).abs()

    data = segmentation.load("vessels", 16)
    known = torch.tensor([0, 128, 255], dtype=torch.uint8)[data.test.labels.long()][:, None]
    monkeypatch.setattr(segmentation, "load", lambda *_: replace(data, test=replace(data.test, images=known)))
    monkeypatch.setattr(RunDir, "load_model", lambda _: Knows())
    result = evaluate(run)
    assert result["summary"]["upright"] == result["summary"]["right_angles"] == result["summary"]["flips"] == 1
    assert 0.5 < result["summary"]["rotated_worst"] < 1


def test_volumes(volumes: RunDir) -> None:
    result = evaluate(volumes)
    cube = [row["dice"] for row in result["conditions"] if row["group"] in ("cube", "flip")]
    assert cube == pytest.approx([cube[0]] * len(cube), abs=1e-3)


def test_predicted_masks(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", rng.random((2, 16, 16)))
    arguments = ["segment", "predict", str(run.path), *(str(tmp_path / n) for n in ("a.png", "b.npy"))]
    assert main([*arguments, "--out", str(tmp_path / "m"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in files.values()] == ["a.png", "b_0.png", "b_1.png"]
    mask = np.asarray(Image.open(files[str(tmp_path / "a.png")]))
    assert mask.shape == (16, 16)
    assert mask.max() <= 2
    assert main([*arguments, "--out", str(tmp_path / "m")]) == 1
    assert "exists already; choose another --out" in capsys.readouterr().err


def test_arrays_of_one_file_get_a_mask_each(run: RunDir, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", train_images=rng.random((2, 16, 16)), test_images=rng.random((1, 16, 16)))
    files = predict(run, [tmp_path / "set.npz"], tmp_path / "m")
    names = ["set_train_images_0.png", "set_train_images_1.png", "set_test_images_0.png"]
    assert sorted(path.name for path in files.values()) == sorted(names)


def test_images_of_the_same_name_are_refused(run: RunDir, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", np.random.default_rng(0).random((16, 16)))
    with pytest.raises(ValueError, match="several images have the same name"):
        predict(run, [tmp_path / "x", tmp_path / "y"], tmp_path / "m")


def test_command_line(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plain"
    small = ["--width", "1", "--epochs", "1", "--size", "16", "--device", "cpu"]
    assert main(["segment", "train", "--data", "vessels", "--model", "unet", "--out", str(out), *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] == 0
    assert main(["segment", "evaluate", str(out)]) == 0
    assert "rotated, worst" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "cells"}, "cells has a label per image, not per pixel; use isoconv train"),
        ({"data": "vesels"}, "unknown segmentation data 'vesels'.*did you mean 'vessels'"),
        ({"model": "sre_resnet18"}, "no use for network 'sre_resnet18'; use one such as sre_unet"),
        ({"model": "unet_3d"}, "vessels has 2D images, network 'unet_3d' does not; use --model unet"),
        ({"rotate": True}, "leave out --recipe and --rotate"),
        ({"size": 8}, "at least 16 pixels"),
    ],
)
def test_wrong_options_are_refused_before_a_run_is_made(
    config: TrainConfig, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(config, out=tmp_path / "x", **change))  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_classification_has_no_use_for_a_unet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`isoconv train` has no use for network 'unet'"):
        training.train(TrainConfig("cells", "unet", tmp_path / "x", size=16, device="cpu"))


def test_a_run_that_classifies_is_refused(evaluated: Callable[[str], RunDir]) -> None:
    with pytest.raises(ValueError, match="was trained to classify; use isoconv evaluate"):
        evaluate(evaluated("plain"))


def test_a_users_folder_from_training_to_evaluation(config: TrainConfig, tmp_path: Path) -> None:
    data = segmentation.load("vessels", 16)
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(data.train.images, data.train.labels, strict=True)):
        Image.fromarray(image[0].numpy()).save(tmp_path / "set" / "images" / f"{i}.png")
        Image.fromarray(mask.numpy()).save(tmp_path / "set" / "masks" / f"{i}.png")
    own = replace(config, data=str(tmp_path / "set"), out=tmp_path / "run", epochs=1)
    assert evaluate(train(own))["data"]["test_images"] == 1
    for kind in ("images", "masks"):
        shutil.copy(tmp_path / "set" / kind / "0.png", tmp_path / "set" / kind / "new.png")
    with pytest.raises(ValueError, match="has other images or labels in test than when .* was started; restore them"):
        evaluate(own.out)
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match=r"set, the data set of .*run, is gone; restore it or"):
        evaluate(own.out)


# What others make of a run


def skip_without_extra(format: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'isoconv[onnx]'")


def run_code(card: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that the code of a model card leaves, run beside its file."""
    monkeypatch.chdir(card.parent)
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    names: dict = {"__name__": "card"}
    exec(compile(code, "card", "exec"), names)
    return names


def test_pt2_takes_any_batch_and_size(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, about = export_run(run, "pt2", tmp_path / "net.pt2"), {"isoconv.json": ""}
    program, network = torch.export.load(done.path, extra_files=about).module(), run.load_model()
    for batch, size in enumerate([(16, 16), (17, 22), (34, 9)], 1):
        x = torch.rand(batch, 1, *size)
        logits = network(x)
        assert logits.shape == (batch, 3, *size)
        assert logits.std() > 0.1
        torch.testing.assert_close(program(x), logits, rtol=1e-4, atol=1e-5)
    assert json.loads(about["isoconv.json"])["logits"] == "(N, 3, H, W)"
    assert run_code(done.card, monkeypatch)["probabilities"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("format", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_other_formats(run: RunDir, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_extra(format)
    done = export_run(run, format, tmp_path / f"net.{format}")
    assert done.smallest == 1
    names = run_code(done.card, monkeypatch)
    assert names["logits" if format == "onnx" else "probabilities"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("format", ["safetensors", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pt2", "onnx"))])
def test_exported_volumes(volumes: RunDir, tmp_path: Path, format: str) -> None:
    skip_without_extra(format)
    done = export_run(volumes, format, tmp_path / f"net.{format}")
    assert "float32 (N, 3, D, H, W)" in done.card.read_text()


def test_a_folder_that_rebuilds_the_network(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = evaluate(run)["summary"]
    saved = isoconv.save_pretrained(run, tmp_path / "net")
    x = torch.rand(2, 1, 17, 22)
    torch.testing.assert_close(isoconv.from_pretrained(saved)(x), run.load_model()(x))
    card = (saved / "README.md").read_text()
    assert "- image-segmentation\n" in card
    for name, key in (("upright", "upright"), ("rotated, mean", "rotated_mean")):
        low, high = (100 * end for end in summary[f"{key}_ci"])
        assert f"| {name} | {100 * summary[key]:.1f} ({low:.1f} to {high:.1f}) |" in card
    assert "Its labels move with the image under quarter turns" in card
    assert "None" not in card
    monkeypatch.chdir(tmp_path)
    shutil.move(saved / "README.md", "card.md")
    assert run_code(Path("card.md").absolute(), monkeypatch)["probabilities"].shape == (1, 3, 16, 16)


def test_the_card_of_a_run_that_was_not_evaluated(run: RunDir, tmp_path: Path) -> None:
    again = shutil.copytree(run.path, tmp_path / "again", ignore=shutil.ignore_patterns("segmentation.json"))
    card = export_run(again, "safetensors").card.read_text()
    assert "None, it was not evaluated: `isoconv segment evaluate again`." in card


def test_what_is_for_networks_that_classify_says_so(run: RunDir, volumes: RunDir) -> None:
    uses = {"evaluate": evaluate_classifier, "predict": Predictor, "compare": lambda run: compare([run, volumes])}
    for name, use in uses.items():
        with pytest.raises(
            ValueError, match=f"segments, this is for networks that classify; see isoconv segment {name}"
        ):
            use(run)
