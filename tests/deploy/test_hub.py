"""Pretrained networks: folders that rebuild what was saved and refuse what does not fit; the hub, offline."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import isoconv
from isoconv.deploy.hub import push_to_hub
from isoconv.models import model_info
from isoconv.runs import RunDir, write_json

Evaluated = Callable[[str], RunDir]
OPTIONS = {"in_channels": 1, "num_classes": 3, "width": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved network."""
    return isoconv.save_pretrained(isoconv.create_model("sre_resnet18", **OPTIONS), tmp_path / "net")


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# What comes back


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sre_resnet18", {"kernel_sizes": (5, 5, 3, 3), "profile": "gaussian", "engine": "reference"}),
        ("sre_resnet18_3d", {"stem_stride": 2, "spacing": (2.0, 1.0, 1.0)}),
        ("resnet18", {}),
    ],
)
def test_the_same_network_comes_back(tmp_path: Path, name: str, options: dict) -> None:
    net = isoconv.create_model(name, **OPTIONS, **options)
    for buffer in net.buffers():
        buffer.data = torch.rand_like(buffer, dtype=torch.float32).to(buffer.dtype)
    again = isoconv.from_pretrained(isoconv.save_pretrained(net, tmp_path / "net"))
    x = torch.randn(2, 1, *[9] * (3 if name.endswith("3d") else 2))
    torch.testing.assert_close(again(x), net.eval()(x))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in net.state_dict().items())
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    assert isoconv.from_pretrained(str(tmp_path / "net")).state_dict().keys() == net.state_dict().keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "name", [name for name in isoconv.list_models() if not {"34", "50"} & set(re.findall(r"\d\d", name))]
)
def test_every_kind_of_network_gives_the_same_outputs_again(name: str, tmp_path: Path) -> None:
    net = isoconv.create_model(name, 1, 2, width=8).eval()
    images = torch.rand(1, 1, *[16] * model_info(name).dims)
    again = isoconv.from_pretrained(isoconv.save_pretrained(net, tmp_path / "net"))
    with torch.no_grad():
        assert torch.equal(again(images), net(images))


def test_a_compiled_network_is_saved_as_what_it_was(tmp_path: Path) -> None:
    net = isoconv.create_model("resnet18", **OPTIONS)
    again = isoconv.from_pretrained(isoconv.save_pretrained(torch.compile(net, backend="aot_eager"), tmp_path / "net"))
    assert again.state_dict().keys() == net.state_dict().keys()


def test_dtype_is_that_of_the_weights(tmp_path: Path) -> None:
    net = isoconv.create_model("resnet18", **OPTIONS).double()
    again = isoconv.from_pretrained(isoconv.save_pretrained(net, tmp_path / "net"))
    assert {p.dtype for p in again.parameters()} == {torch.float64}


def test_a_network_that_comes_back_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    again = isoconv.save_pretrained(isoconv.from_pretrained(folder), tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["sre", "masks/sre", "masks/volumes"])
def test_a_run_with_its_card(evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = evaluated(name)
    saved = isoconv.save_pretrained(run, tmp_path / "net")
    task = run.task
    x = torch.rand(2, task.info.channels, *range(16, 16 + task.info.dims))
    torch.testing.assert_close(isoconv.from_pretrained(saved)(x), run.load_model()(x), rtol=1e-4, atol=1e-4)
    config = json.loads((saved / "config.json").read_text())
    assert config["task"]["labels"] == list(task.info.labels)
    assert config["task"]["size"] == 16
    assert config["isoconv"] == isoconv.__version__
    card = (saved / "README.md").read_text()
    assert card.startswith(f"---\nlibrary_name: isoconv\ntags:\n- image-{task.name}\n")
    assert "## Scores, protocol standard" in card
    assert "others run from 1 up, untested" in card
    assert "None" not in card
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {"__name__": "card"}
    exec(compile(code, "card", "exec"), names)
    pixels = [16] * task.info.dims if task.networks == "segmentation" else []
    assert list(names["probabilities"].shape) == [1, len(task.info.labels), *pixels]


def test_outputs_in_the_unit_of_the_targets(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("plain")
    x, bare = torch.rand(2, 3, 16, 16), run.load_model()
    outputs = {"shift": [1.0, 2.0, 3.0, 4.0, 5.0], "scale": [0.5] * 5}
    write_json(run.path / "model.json", {**run.model_info, "outputs": outputs})
    again = isoconv.from_pretrained(isoconv.save_pretrained(run, tmp_path / "net"))
    torch.testing.assert_close(again(x), 0.5 * bare(x) + torch.arange(1.0, 6))


def test_the_network_of_a_run_without_its_card(evaluated: Evaluated, tmp_path: Path) -> None:
    network = evaluated("plain").load_model()
    x = torch.rand(1, 3, 16, 16)[:, : network.net.in_channels]
    again = isoconv.from_pretrained(isoconv.save_pretrained(network, tmp_path / "net"))
    torch.testing.assert_close(again(x), network(x))


# What is refused when saving


def test_only_new_folders_are_written(folder: Path, tmp_path: Path) -> None:
    net = isoconv.create_model("resnet18", **OPTIONS)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="exists and is not empty; choose another folder"):
        isoconv.save_pretrained(net, folder)
    assert (folder / "config.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="not empty"):
        isoconv.save_pretrained(net, folder / "config.json")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere to make net in"):
        isoconv.save_pretrained(net, tmp_path / "nowhere" / "net")
    (tmp_path / "empty").mkdir()
    isoconv.save_pretrained(net, tmp_path / "empty")


def test_networks_that_could_not_be_rebuilt(tmp_path: Path) -> None:
    net = isoconv.create_model("resnet18", **OPTIONS)
    with pytest.raises(ValueError, match=r"not built by isoconv\.create_model"):
        isoconv.save_pretrained(nn.Linear(2, 2), tmp_path / "net")
    with pytest.raises(ValueError, match=r"not built by isoconv\.create_model"):
        isoconv.save_pretrained(isoconv.convert(net), tmp_path / "net")
    net.fc = nn.Linear(16, 5)
    with pytest.raises(ValueError, match=r"was changed after create_model built it: fc\.weight is \(5, 16\), expected"):
        isoconv.save_pretrained(net, tmp_path / "net")
    net = isoconv.create_model("resnet18", **OPTIONS)
    net.layer2[0].relu = nn.GELU()
    with pytest.raises(ValueError, match=r"it has \(relu\): GELU.*, expected \(relu\): ReLU"):
        isoconv.save_pretrained(net, tmp_path / "net")
    net = isoconv.create_model("resnet18", **OPTIONS)
    net.bn1.weight = net.bn1.bias
    with pytest.raises(ValueError, match=r"was changed .*: bn1\.weight and bn1\.bias share their values"):
        isoconv.save_pretrained(net, tmp_path / "net")
    with torch.device("meta"):
        net = isoconv.create_model("resnet18", **OPTIONS)
    with pytest.raises(ValueError, match=r"conv1\.weight is on the meta device, without values"):
        isoconv.save_pretrained(net, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_options_counted_by_numpy(tmp_path: Path) -> None:
    net = isoconv.create_model("sre_resnet18", 1, np.int64(3), width=np.int64(2))
    isoconv.from_pretrained(isoconv.save_pretrained(net, tmp_path / "net"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        isoconv.save_pretrained(isoconv.create_model("resnet18", **OPTIONS), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


# What is refused when loading


def test_missing_and_cut_files(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a complete weights file .* copy or download it again"):
            isoconv.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        isoconv.from_pretrained(folder)
    (folder / "config.json").write_text('{"version": 1, ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        isoconv.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; was the folder written by save_pre"):
        isoconv.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2, "isoconv": "9.0"}, "has format version 2, this isoconv reads 1; install isoconv 9.0"),
        ({"version": None}, "has no version of the format"),
        ({"modle": {}}, "has an unknown entry 'modle'"),
        ({"model": "resnet18"}, "'model' must be an object, got 'resnet18'"),
        ({"model": {"name": "sre_resnet81", **OPTIONS}}, "did you mean 'sre_resnet18'"),
        ({"model": {"name": "sre_resnet18", **OPTIONS, "widht": 4}}, "did you mean 'width'?"),
        ({"model": {"name": "sre_resnet18", **OPTIONS, "bands": 0}}, "does not describe a network of this version"),
        (
            {"model": {"name": "sre_resnet18", **OPTIONS, "width": 3}},
            "does not fit the network: conv1.weight",
        ),
        ({"model": {"name": "sre_resnet34", **OPTIONS}}, "layer1.2.conv1.weight is missing"),
        ({"images": {"mask": True}}, "lacks the entry 'images.masked'; did you mean 'mask'?"),
        ({"model": {"name": "sre_resnet18", **OPTIONS, "kernel_sizes": [501] * 4}}, "a whole number from 1 to 31, or"),
        ({"model": {"name": "sre_resnet18", **OPTIONS, "width": 4096}}, "expected at most 268,435,456"),
        ({"model": {"name": "sre_resnet18", **OPTIONS, "spacing": [1e30, 1]}}, "got [1e+30, 1]"),
        ({"sha256": "0" * 64}, "has another checksum than config.json beside it notes; copy or download it again"),
    ],
)
def test_configs_that_do_not_fit(folder: Path, changes: dict, words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        isoconv.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_object_or_lacks_an_entry(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="has no version of the format"):
        isoconv.from_pretrained(folder)
    del config["task"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks the entry 'task'"):
        isoconv.from_pretrained(folder)


def test_weights_under_other_names_are_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["fc.wieght"] = state.pop("fc.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"fc\.weight is missing; did you mean 'fc\.wieght'\?"):
        isoconv.from_pretrained(folder)


# The hub


class FakeHub(ModuleType):
    """Stands for `huggingface_hub`: repositories are folders."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__("huggingface_hub")
        kinds = {name: type(name, (Exception,), {}) for name in ("HfHubHTTPError", "LocalEntryNotFoundError")}
        self.errors = SimpleNamespace(**kinds, OfflineModeIsEnabled=type("OfflineModeIsEnabled", (Exception,), {}))
        self.repositories, self.calls = repositories, []

    def snapshot_download(self, repository: str, **options: object) -> str:
        self.calls.append((repository, options))
        if repository not in self.repositories:
            raise self.errors.HfHubHTTPError("404 Client Error.\nRepository Not Found")
        return str(self.repositories[repository])

    def HfApi(self) -> SimpleNamespace:  # noqa: N802 - its name
        def create_repo(repository: str, **options: object) -> str:
            self.calls.append((repository, options))
            return f"https://hub/{repository}"

        def upload_folder(**options: object) -> None:
            self.repositories[options["repo_id"]] = options["folder_path"]
            self.calls.append(options)

        return SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub({})
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
    monkeypatch.chdir(tmp_path)
    return fake


def test_push_and_come_back(hub: FakeHub, folder: Path) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"README\.md does not exist; write a model card"):
        push_to_hub(folder, "me/net")
    (folder / "README.md").write_text("# My network")
    assert push_to_hub(folder, "me/net") == "https://hub/me/net"
    made, uploaded = hub.calls
    assert made == ("me/net", {"private": True, "exist_ok": True})
    assert uploaded["allow_patterns"] == ["config.json", "model.safetensors", "README.md"]
    x, net = torch.randn(1, 1, 8, 8), isoconv.from_pretrained("me/net", revision="v1")
    torch.testing.assert_close(net(x), isoconv.from_pretrained(folder)(x))
    assert hub.calls[-1] == ("me/net", {"revision": "v1", "allow_patterns": uploaded["allow_patterns"]})


def test_what_is_not_pushed(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(ValueError, match="named 'owner/name', got 'net'"):
        push_to_hub(folder, "net")
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        push_to_hub("nowhere", "me/net")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not a complete weights file"):
        push_to_hub(folder, "me/net")
    assert hub.calls == []


def test_neither_a_folder_nor_a_repository(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder 'nett'; did you mean 'net'\? \(a repository"):
        isoconv.from_pretrained("nett")
    with pytest.raises(FileNotFoundError, match=r"no folder 'me/net', and no such repository .*: 404 Client Error\.$"):
        isoconv.from_pretrained("me/net")
    with pytest.raises(FileNotFoundError, match=r"no folder '\.\./\.\./etc'"):
        isoconv.from_pretrained("../../etc")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    isoconv.from_pretrained(folder)
    with pytest.raises(ModuleNotFoundError, match=r"no folder 'me/net'.*pip install 'isoconv\[hub\]'"):
        isoconv.from_pretrained("me/net")


def test_the_real_package_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="not installed: pip install 'isoconv[hub]'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="no folder 'me/net', and no such repository can be downloaded"
    ) as caught:
        isoconv.from_pretrained("me/net")
    assert "\n" not in str(caught.value)
    assert {"create_repo", "upload_folder"} <= set(dir(hub.HfApi))


# What belongs together, and what does not


def test_a_network_without_a_run_has_a_card(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: isoconv\n")
    assert "# sre_resnet18\n" in card
    assert "| symmetry kept exactly | quarter turns and mirror images, to rounding |" in card
    assert "(N, 1, H, W)" in card
    assert "Task, labels, data, scores and limits. Write them here before others use it." in card
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {}
    exec(compile(code, "card", "exec"), names)
    assert names["model"](torch.rand(1, 1, 9, 9)).shape == (1, 3)
    plain = isoconv.save_pretrained(isoconv.create_model("resnet18_3d", **OPTIONS), tmp_path / "it's\nplain")
    card = (plain / "README.md").read_text()
    assert "| symmetry kept exactly | none |" in card
    assert r"""from_pretrained("it's\nplain")""" in card


def test_a_run_directory_is_no_saved_network(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    loader = f"isoconv.runs.RunDir({str(run.path)!r}).load_model()"
    with pytest.raises(ValueError, match=f"is a run directory; load its network with {re.escape(loader)}"):
        isoconv.from_pretrained(run.path)
    for name in ("model.json", "model.safetensors"):  # before the first epoch
        (run.path / name).unlink()
    with pytest.raises(ValueError, match="is a run directory"):
        isoconv.from_pretrained(run.path)
