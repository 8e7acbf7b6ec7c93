"""Taking a network away: torch.hub, exported files and docs/use.md, as a person does it."""
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from scripts import ROOT, behind, error_line, forget, metrics, run, snapshot, the_run, write_images

import export
import genotypes
import hubconf
from harness import weights
from input_pipeline import imagenet, load
from input_pipeline.batches import eval_batches
from input_pipeline.sets import as_in_run
from model import NetworkCIFAR, NetworkImageNet

sys.path.insert(0, str(ROOT / "benchmarks"))
from one_image import settle

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = next(text for _, text in BLOCKS if "export.py" in text).replace("\\\n", " ").splitlines()

SMALL = shlex.split("--init_channels 4 --layers 2 --device cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as docs/use.md has it, with a small training on digits in runs/, and how that ended."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "p-darts").symlink_to(ROOT, target_is_directory=True)
    outcome = run("train_cifar.py", *SMALL, "--epochs", 2, "--batch_size", 32, "--note", "use", cwd=folder)
    assert outcome.code == 0, outcome
    return SimpleNamespace(folder=folder, run=the_run(folder / "runs"), outcome=outcome)


@pytest.fixture(scope="module")
def exported(place):
    """The same, with the run exported by the line that it printed, and its weights to safetensors."""
    command = shlex.split(place.outcome.err.splitlines()[-1].split("export it: ")[1])
    assert command[:2] == ["python", "export.py"]
    outcome = run("export.py", *command[2:], "--safetensors", "network.safetensors", cwd=place.folder)
    assert outcome.code == 0 and len(outcome.err.splitlines()) == 2, outcome
    shutil.move(place.run / "network.onnx", place.folder)
    return place


def program(text, folder):
    """What a Python program prints that is started in `folder`."""
    (folder / "program.py").write_text(text)
    outcome = run(folder / "program.py", cwd=folder)
    assert outcome.code == 0, outcome
    return outcome.out


def digit_images():
    """The digits as the scripts see them: (500, 3, 8, 8) float32 and (500,)."""
    digits = load("digits", "")
    return next(eval_batches(digits.test_images, digits.test_target, 500, digits, "cpu"))


def trained(run_dir, path="weights.pt"):
    network = NetworkCIFAR(4, 10, 2, False, genotypes.load("PDARTS")).eval()
    weights.load(str(run_dir / path), network)
    return network


# ---- torch.hub

HUB = """
import json, sys
sys.path.insert(0, "mine")
import utils, model, data
for name in EARLY:
    __import__(name)
import torch
network = torch.hub.load("p-darts", "pdarts_cifar", source="local", weights="RUN").eval()
import harness.runs
assert all(module.mine for module in (utils, model, data, harness, harness.runs))
images = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)
logits = network(images)
network.train()(images).sum().backward()  # both work on
assert harness.runs.read() == "my run" and torch.compile(network.eval(), backend="eager")(images).shape == (2, 10)
print(json.dumps([logits.tolist(), network.classes, network.mean, network.std, network.image_size]))
"""


@pytest.mark.parametrize("early", [(), ("harness", "harness.runs")], ids=["afterwards", "before"])
def test_torch_hub_loads_a_run_beside_modules_of_the_same_names(early, place, tmp_path):
    """The program has a utils, a model, a data and a package harness of its own, imported before or afterwards."""
    for name in ("utils.py", "model.py", "data.py", "harness/__init__.py", "harness/runs.py"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine = True\ndef read(): return 'my run'\n")
    (tmp_path / "p-darts").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "program.py").write_text(HUB.replace("RUN", str(place.run)).replace("EARLY", repr(early)))
    outcome = run(tmp_path / "program.py", cwd=tmp_path, change=forget)
    assert outcome.code == 0, outcome.err
    logits, *about = json.loads(outcome.out)
    expected, _ = trained(place.run)(torch.linspace(-1, 1, 384).view(2, 3, 8, 8))
    assert torch.tensor(logits).sub(expected).abs().max() < 1e-5
    digits = load("digits", "")
    assert about == [digits.classes, [digits.mean[0]] * 3, [digits.std[0]] * 3, 8]
    assert digits.classes == list("0123456789")


@pytest.mark.parametrize("entry, network_class, size", [
    (hubconf.pdarts_cifar, NetworkCIFAR, 32), (hubconf.pdarts_imagenet, NetworkImageNet, 224)])
def test_the_hub_gives_logits_alone_and_in_training_the_pair(entry, network_class, size, tmp_path):
    torch.manual_seed(0)
    own = network_class(4, 7, 3, True, genotypes.load("random:3"))
    torch.save({"state_dict": own.state_dict()}, tmp_path / "w.pt")
    options = {"genotype": "random:3", "num_classes": 7, "init_channels": 4, "layers": 3}
    network, images = entry(**options, auxiliary=True, weights=tmp_path / "w.pt"), torch.randn(2, 3, size, size)
    assert network.training and list(network.state_dict()) == list(own.state_dict())
    for logits, expected in zip(network(images), own(images)):
        assert torch.equal(logits, expected)
    assert torch.equal(network.eval()(images), own.eval()(images)[0])
    plain = entry(**options, weights=str(tmp_path / "w.pt"))
    assert plain(images).shape == (2, 7) and not any("auxiliary" in name for name in plain.state_dict())


def test_the_hubs_defaults_are_the_published_sizes():
    with torch.device("meta"):
        networks = hubconf.pdarts_cifar(), hubconf.pdarts_imagenet()
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [3_433_798, 4_944_352]


@pytest.mark.parametrize("entry, options, text", [
    ("pdarts_cifar", {"num_classes": 100}, "has num_classes 10, not 100: omit"),
    ("pdarts_cifar", {"genotype": "DARTS_V2"}, "has genotype Genotype.*: omit"),
    ("pdarts_imagenet", {}, "is a run of kind eval: use pdarts_cifar")])
def test_the_hub_refuses_what_contradicts_the_run(entry, options, text, place):
    with pytest.raises(ValueError, match=text):
        getattr(hubconf, entry)(**options, weights=str(place.run))


@pytest.mark.parametrize("options", [{"num_classes": 10}, {"genotype": "p-darts", "layers": 2, "init_channels": 4}])
def test_the_hub_takes_what_agrees_with_the_run(options, place):
    assert hubconf.pdarts_cifar(**options, weights=place.run).classifier.weight.shape == (10, 64)


# ---- what export.py writes

def test_the_exported_run_reaches_its_test_accuracy_in_onnx_runtime(exported):
    session = onnxruntime.InferenceSession(exported.folder / "network.onnx")
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    digits = load("digits", "")
    pixels = digits.test_images.expand(-1, 3, -1, -1).numpy() / 255
    mean, std = (np.array(about[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    logits, = session.run(["logits"], {"images": ((pixels - mean) / std).astype(np.float32)})  # 500 at once
    hits = (logits.argmax(1) == digits.test_target.numpy()).sum()
    accuracy = metrics(exported.run)[-1]["test_acc"]
    assert accuracy > 50 and 100 * hits / 500 == pytest.approx(accuracy) == about["accuracy"]


def test_both_files_give_pytorchs_logits_for_any_number_of_images(exported):
    images, _ = digit_images()
    expected = trained(exported.run)(images)[0].detach()
    session = onnxruntime.InferenceSession(exported.folder / "network.onnx")
    network = NetworkCIFAR(4, 10, 2, False, genotypes.load("PDARTS")).eval()
    network.load_state_dict(load_file(exported.folder / "network.safetensors"))
    for count in (1, 2, 77):
        part = images[:count].contiguous()
        for logits in (torch.tensor(session.run(None, {"images": part.numpy()})[0]), network(part)[0]):
            assert logits.sub(expected[:count]).abs().max() < 1e-5 * max(1, expected.abs().max())


def test_both_files_say_how_it_is_used(exported):
    session = onnxruntime.InferenceSession(exported.folder / "network.onnx")
    onnx = session.get_modelmeta().custom_metadata_map
    with safe_open(exported.folder / "network.safetensors", "pt") as file:
        assert file.metadata() == onnx | {"format": "pt"}
    about = {name: json.loads(text) for name, text in onnx.items()}
    record = json.loads((exported.run / "args.json").read_text())
    assert about["commit"] == record["git"] and about["image_size"] == 8 and len(about["classes"]) == 10
    assert genotypes.parse(about["genotype"]) == genotypes.load("PDARTS")
    assert "float32 (batch, 3, 8, 8), RGB, (pixel / 255 - mean) / std" in about["input"]
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8] and session.get_outputs()[0].shape == ["batch", 10]
    assert str(ROOT).encode() not in (exported.folder / "network.onnx").read_bytes()


def test_the_programs_of_the_document_run_as_printed(exported):
    digits, predicted = load("digits", ""), trained(exported.run)(digit_images()[0])[0].argmax(1)
    Image.fromarray(digits.test_images[5, 0].numpy()).save(exported.folder / "image.png")
    hub, runtime, *_ = PROGRAMS
    assert program(hub, exported.folder) == f"{predicted[5]}\n"
    assert program(runtime, exported.folder) == f"{predicted[5]}\n"
    assert len(hub.splitlines()) <= 12
    assert "torch" not in runtime.replace("onnxruntime", "")


@pytest.mark.slow
def test_a_pt2_file_has_the_same_and_the_documents_last_program_runs_as_printed(exported):
    outcome = run("export.py", exported.run, "--pt2", "network.pt2", cwd=exported.folder)
    assert outcome.code == 0, outcome
    onnx = onnxruntime.InferenceSession(exported.folder / "network.onnx").get_modelmeta().custom_metadata_map
    pt2, (images, _) = dict.fromkeys(onnx, ""), digit_images()
    loaded = torch.export.load(exported.folder / "network.pt2", extra_files=pt2).module()
    assert pt2 == onnx
    expected = trained(exported.run)(images)[0]
    for count in (1, 2, 77):
        assert loaded(images[:count]).sub(expected[:count]).abs().max() < 1e-5 * max(1, expected.abs().max())
    accuracy = metrics(exported.run)[-1]["test_acc"]
    assert program(PROGRAMS[2], exported.folder).splitlines() == [
        f"{list('0123456789')} torch.Size([5, 10])", f"{accuracy} torch.Size([10, 64])"]


def test_the_best_epochs_weights_have_its_accuracy_and_others_none(place):
    best = max(record["test_acc"] for record in metrics(place.run))
    assert export.accuracy_of(place.run, f"{place.run}/../{place.run.name}/best.pt") == best
    assert export.accuracy_of(place.run, place.run / "checkpoint.pt") is None


@pytest.mark.slow
def test_a_run_of_train_imagenet_started_from_other_weights_is_exported(tmp_path):
    write_images(tmp_path / "images", val=3)
    own = NetworkImageNet(4, 1000, 2, False, genotypes.load("PDARTS"))
    torch.save(own.state_dict(), tmp_path / "w.pt")
    options = shlex.split("--tmp_data_dir images --epochs 1 --image_size 32 --batch_size 8 --lr_scheduler cosine")
    outcome = run("train_imagenet.py", *SMALL, *options, "--workers", 0, "--learning_rate", 0, "--init_weights", "w.pt",
                  cwd=tmp_path)
    assert outcome.code == 0 and "starting from the weights of w.pt; re-initialised" in outcome.err, outcome
    run_dir = the_run(tmp_path / "runs")
    (tmp_path / "w.pt").unlink()
    assert run("train_imagenet.py", "--resume", run_dir, cwd=tmp_path).code == 0  # its checkpoint has all
    outcome = run("export.py", run_dir, "--safetensors", "n.safetensors", cwd=tmp_path)
    assert outcome.code == 0, outcome
    tensors, found = load_file(tmp_path / "n.safetensors"), dict(own.named_parameters())
    assert all(torch.equal(tensors[name], found[name]) for name in found if not name.startswith("classifier."))
    with safe_open(tmp_path / "n.safetensors", "pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
    assert about["classes"] == ["bear", "cat"] and "shorter side has 36 pixels" in about["input"]
    assert (about["mean"], about["std"]) == tuple(map(list, imagenet.STATS))
    network = hubconf.pdarts_imagenet(weights=run_dir)
    assert (network.image_size, network.classes) == (32, ["bear", "cat"])


# ---- one recipe: what turns a picture into the input

def write_wide(root):
    """Pictures of 64x8: the middle is light for cats and dark for dogs, the rest dark; squashed, all look like dogs."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, middle in (("cat", 200), ("dog", 40)):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.full((8, 64, 3), 40)
                pixels[:, 28:36] = middle
                pixels = pixels + random.integers(-20, 21, size=pixels.shape)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder as docs/use.md has it, with a training on wide pictures, and its export."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "p-darts").symlink_to(ROOT, target_is_directory=True)
    options = ["--dataset", "folder", "--tmp_data_dir", write_wide(folder / "data"), "--image_size", 8, "--epochs", 6,
               "--batch_size", 8, "--note", "use", *SMALL]
    assert run("train_cifar.py", *options, cwd=folder).code == 0
    run_dir = the_run(folder / "runs")
    assert metrics(run_dir)[-1]["test_acc"] == 100
    assert run("export.py", run_dir, "--onnx", "network.onnx", cwd=folder).code == 0
    return SimpleNamespace(folder=folder, run=run_dir)


@pytest.mark.parametrize("which", [0, 1], ids=["hub", "onnx"])
def test_the_programs_of_the_document_predict_pictures_that_are_not_square(which, wide):
    """As accurately as training measured; squashed, as they did before, half of them."""
    for path in sorted((wide.folder / "data/val").glob("*/[01].png")):
        shutil.copy(path, wide.folder / "image.png")
        assert program(PROGRAMS[which], wide.folder) == f"{path.parent.name}\n"


def document_input(path, about) -> torch.Tensor:
    """What the document's second program makes of a picture, (1, 3, H, W)."""
    lines = PROGRAMS[1].splitlines()
    first, last = (next(i for i, line in enumerate(lines) if line.startswith(start)) for start in ("image", "images ="))
    known = {"Image": Image, "np": np, "about": about}
    exec("\n".join(lines[first:last + 1]).replace('"image.png"', repr(str(path))), known)
    return torch.tensor(known["images"], dtype=torch.float32)


@pytest.mark.parametrize("size", [(8, 8), (31, 8), (8, 31), (100, 37), (37, 100), (5, 3), (1, 1), (640, 480)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_document_hub_and_pipeline_make_the_same_of_a_picture(size, mode, wide, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    network = hubconf.pdarts_cifar(weights=wide.run)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).convert(mode).save(tmp_path / split / name / "a.tif")
    dataset = as_in_run(load("folder", str(tmp_path), 8), wide.run / "best.pt")
    expected, _ = next(eval_batches(dataset.test_images[:1], dataset.test_target, 1, dataset, "cpu"))
    path, about = tmp_path / "val/cat/a.tif", json.loads((wide.run / "data.json").read_text())
    assert torch.equal(network.read(path), expected)
    assert document_input(path, about | {"crop": 8}).sub(expected).abs().max() < 1e-5


def test_the_recipe_of_train_imagenet_is_the_documents_and_the_hubs(wide, tmp_path):
    loader = imagenet.loaders(str(wide.folder / "data"), 32, 4, 0, 0, "cpu", training=False)[1]
    data = imagenet.open_folders(str(wide.folder / "data"), 32)[2]
    expected, path = next(iter(loader))[0][:1], loader.dataset.samples[0][0]
    network = hubconf.pdarts_imagenet(num_classes=2, init_channels=4, layers=2)
    vars(network).update(data)
    assert data["resize"] == 36 and network.read(path).sub(expected).abs().max() < 1e-5
    assert document_input(path, data | {"crop": 32}).sub(expected).abs().max() < 1e-5


def test_the_hub_reads_pictures_as_training_does(wide, tmp_path):
    """Transparent ones are composited on white, 16 bits are scaled, an unreadable one is refused by name."""
    network = hubconf.pdarts_cifar(weights=wide.run)
    mean, std = (torch.tensor(vars(network)[name]).view(3, 1, 1) for name in ("mean", "std"))
    Image.new("RGBA", (20, 10), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((10, 20), 65535, np.uint16)).save(tmp_path / "bright.png")
    for name in ("clear.png", "bright.png"):
        expected = ((1 - mean) / std).expand(3, 8, 8)
        assert network.read(tmp_path / name)[0].sub(expected).abs().max() < 1e-5
    (tmp_path / "none.png").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read image .*none.png: empty"):
        network.read(tmp_path / "none.png")
    with pytest.raises(ValueError, match="no data.json that says how"):
        hubconf.pdarts_cifar().read(tmp_path / "clear.png")


def test_metadata_say_how_a_picture_is_resized_and_cut(wide):
    session = onnxruntime.InferenceSession(wide.folder / "network.onnx")
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert (about["resize"], about["crop"], about["image_size"]) == (8, 8, 8) and about["classes"] == ["cat", "dog"]
    assert "shorter side has 8 pixels" in about["input"] and len(about["mean"]) == len(about["std"]) == 3


# ---- bad input

def assert_refused(code, text, *options, cwd=None):
    """One line that says it, and no file in the current folder."""
    before = snapshot(cwd) if cwd else {}
    outcome = run("export.py", *options, cwd=cwd)
    message = error_line(outcome, code)
    assert re.search(text, message) and outcome.err.count("\n") == 1, outcome.err
    assert not cwd or snapshot(cwd) == before


@pytest.mark.parametrize("code, text, options", [
    (2, "nothing to write", ["RUN"]), (2, "must end in .onnx", ["RUN", "--onnx", "x.pb"]),
    (1, "create the folder", ["RUN", "--onnx", "none/x.onnx"]), (1, "without weights", ["PDARTS", "--onnx", "x.onnx"]),
    (1, "similar names: PDARTS", ["PDART", "--onnx", "x.onnx"]),
    (1, "without weights", [str(genotypes.load("PDARTS")), "--onnx", "x.onnx"]),  # longer than a file's name may be
    (1, "another network's", ["random:1", "--weights", "RUN/weights.pt", "--safetensors", "x.safetensors"]),
    (1, "--dataset is missing", ["PDARTS", "--weights", "RUN/weights.pt", "--pt2", "x.pt2"]),
    (1, "no such file", ["RUN", "--weights", "none.pt", "--pt2", "x.pt2"])])
def test_what_cannot_be_exported_is_refused(code, text, options, place, tmp_path):
    options = [option.replace("RUN", str(place.run)) for option in options]
    assert_refused(code, text, *options, cwd=tmp_path)


def test_an_unfinished_run_a_search_and_a_supernet_are_refused(place, tmp_path):
    run_dir = shutil.copytree(place.run, tmp_path / "run")
    (run_dir / "weights.pt").unlink()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text(lines[0])
    assert_refused(1, "not finished, 1 of 2 epochs .*--resume", "run", "--onnx", "x.onnx", cwd=tmp_path)
    with pytest.raises(ValueError, match="not finished"):
        hubconf.pdarts_cifar(weights=run_dir)
    record = json.loads((run_dir / "args.json").read_text()) | {"kind": "search"}
    (run_dir / "args.json").write_text(json.dumps(record))
    assert_refused(1, "without weights", "run", "--onnx", "x.onnx", cwd=tmp_path)
    torch.save({"alphas_normal": torch.zeros(14, 8)}, tmp_path / "w.pt")
    assert_refused(1, "not those of a trained", "run", "--weights", "w.pt", "--onnx", "x.onnx", cwd=tmp_path)


def test_data_of_other_classes_are_refused(place, tmp_path):
    write_images(tmp_path / "images", val=3)
    options = ["--dataset", "folder", "--tmp_data_dir", "images", "--onnx", "x.onnx"]
    message = error_line(run("export.py", place.run, *options, cwd=tmp_path), 1)
    assert "other classes (only there: 0, 1, 2, 3, 4; only here: bear, cat)" in message
    shutil.copy(place.run / "weights.pt", tmp_path)  # beside no run
    message = error_line(run("export.py", "PDARTS", "--weights", "weights.pt", *options, cwd=tmp_path), 1)
    assert "for 10 classes, the data has 2" in message


def test_an_existing_file_is_kept_unless_forced(place, tmp_path):
    (tmp_path / "x.safetensors").write_text("mine")
    options = [place.run, "--safetensors", "x.safetensors"]
    assert_refused(1, "x.safetensors exists.*--force", *options, cwd=tmp_path)
    assert run("export.py", *options, "--force", cwd=tmp_path).code == 0
    assert "classifier.weight" in load_file(tmp_path / "x.safetensors") and len(list(tmp_path.iterdir())) == 1


FULL = """
import os
def fsync(file):
    raise OSError(28, "No space left on device")
os.fsync = fsync
"""


def test_a_full_disk_leaves_the_old_file_and_nothing_new(place, tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("x.safetensors", "x.safetensors.tmp"):
        (tmp_path / "x" / name).write_text("mine")
    target = tmp_path / "x/x.safetensors"
    outcome = run(behind(FULL, tmp_path), ROOT / "export.py", place.run, "--safetensors", target, "--force")
    assert "x.safetensors (No space left on device): free space" in error_line(outcome, 1)
    assert {path.name: path.read_text() for path in target.parent.iterdir()} == {
        "x.safetensors": "mine", "x.safetensors.tmp": "mine"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_files_are_written_to_a_folder_whose_name_has_any_bytes(place, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    words = [word for kind in export.PACKAGES for word in (f"--{kind}", folder / f"x.{kind}")]
    outcome = run("export.py", place.run, *words)
    assert outcome.code == 0 and len(list(folder.iterdir())) == 3, outcome


POWERLESS = """
import ctypes, struct
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # root is like anyone then
"""


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_folder_without_rights_is_refused_before_the_work(place, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    outcome = run(behind(POWERLESS, tmp_path), ROOT / "export.py", place.run, "--onnx", tmp_path / "closed/x.onnx")
    assert "or fix access" in error_line(outcome, 1) and not list((tmp_path / "closed").iterdir())


@pytest.mark.parametrize("suffix, package", [("onnx", "onnxscript"), ("onnx", "onnxruntime"),
                                             ("safetensors", "safetensors")])
def test_a_missing_package_is_asked_for(suffix, package, place, tmp_path):
    hidden = f'sys.modules["{package}"] = None'
    outcome = run(behind(hidden, tmp_path), ROOT / "export.py", place.run, f"--{suffix}", tmp_path / f"x.{suffix}")
    assert f"pip install {package};" in error_line(outcome, 2)


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_file_of_other_logits_gets_no_name(error, monkeypatch, tmp_path):
    torch.manual_seed(0)
    network = settle(hubconf.pdarts_cifar("PDARTS", 10, 4, 3), torch.randn(8, 3, 8, 8))
    to_bytes, run_file = export.FORMATS["safetensors"]
    wrong = to_bytes, lambda *args: run_file(*args) + error
    monkeypatch.setitem(export.FORMATS, "safetensors", wrong)
    with torch.no_grad(), pytest.raises(ValueError, match="is not written, its logits differ"):
        export.export("safetensors", tmp_path / "x.safetensors", network, None, torch.randn(3, 3, 8, 8), {})
    assert not list(tmp_path.iterdir())


# ---- hub's networks elsewhere

PICKLED = """
import copy, io, pickle, sys, torch
import model  # the caller's own
network = torch.hub.load({root!r}, {entry!r}, source="local", **{options})
network.classes = ["a", "b"]
network = network.{mode}().to({dtype})
images = torch.randn(2, 3, 64, 64, dtype={dtype})
torch.manual_seed(0)
expected = network(images)
with open("network.pkl", "wb") as file:
    pickle.dump(network, file)
torch.save(network, "network.pt")
torch.save([images, expected], "expected.pt")
twin = copy.deepcopy(network)
assert type(twin) is type(network) and twin.classes == network.classes and twin.training == network.training
twin.classifier.bias.data += 1
assert not torch.equal(twin.classifier.bias, network.classifier.bias) and model.mine
"""
READ = """
import pickle, sys, torch
images, expected = torch.load("expected.pt", weights_only=False)
for network in (pickle.load(open("network.pkl", "rb")), torch.load("network.pt", weights_only=False)):
    torch.manual_seed(0)
    assert torch.equal(network(images), expected), (network(images), expected)
    assert network.classes == ["a", "b"] and network.training == {training}
assert "model" not in sys.modules
"""


@pytest.mark.parametrize("entry, options, mode, dtype", [
    ("pdarts_cifar", {"init_channels": 2, "layers": 3}, "eval", "torch.float64"),
    ("pdarts_cifar", {"init_channels": 2, "layers": 3, "genotype": "random:1"}, "eval", "torch.float32"),
    ("pdarts_imagenet", {"init_channels": 4, "layers": 3, "num_classes": 2}, "eval", "torch.float32")])
def test_a_hub_network_goes_through_pickle_and_deepcopy_in_any_program(entry, options, mode, dtype, tmp_path):
    (tmp_path / "model.py").write_text("mine = True")
    code = PICKLED.format(root=str(ROOT), entry=entry, options=options, mode=mode, dtype=dtype)
    for text in (code, READ.format(training=mode == "train")):
        done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_pickled_network_keeps_its_device_type_and_mode():
    network = hubconf.pdarts_cifar("random:2", 3, 2, 3, auxiliary=True).train().half()
    network.drop_path_prob = 0.2
    twin = pickle.loads(pickle.dumps(network))
    assert twin.training and twin.drop_path_prob == 0.2 and twin.classifier.weight.dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values()))


def test_paths_of_hub_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    genotypes.save(genotypes.load("random:3"), tmp_path / "cell.json")
    network = hubconf.pdarts_cifar("~/cell.json", 10, 2, 3)
    weights.save(tmp_path / "w.pt", network)
    twin = hubconf.pdarts_cifar("random:3", 10, 2, 3, weights="~/w.pt")
    assert torch.equal(twin.classifier.weight, network.classifier.weight)


# ---- every cell, and the published sizes

ALL = "EVERY_CELL" in os.environ  # takes 10 s a cell
CELLS = [*genotypes.PUBLISHED, *(f"random:{seed}" for seed in range(50))]


@pytest.mark.slow
@pytest.mark.parametrize("arch", CELLS if ALL else CELLS[::18])
def test_every_cell_is_exported_to_every_form(arch, tmp_path):
    torch.manual_seed(0)
    network = settle(hubconf.pdarts_cifar(arch, 10, 4, 3), torch.randn(16, 3, 16, 16))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert network(images).std(0).mean() > 1e-3  # the images differ
        program = export.trace(network, images)
        for suffix in export.FORMATS:
            assert export.export(suffix, tmp_path / f"x.{suffix}", network, program, images, {}) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("entry, size, classes", [("pdarts_imagenet", 224, 1000), ("pdarts_cifar", 32, 10)][:1 + ALL])
def test_pdarts_at_its_published_size_gives_the_same_logits_in_every_form(entry, size, classes, tmp_path):
    torch.manual_seed(0)
    torch.save(settle(getattr(hubconf, entry)(), torch.randn(8, 3, size, size)).state_dict(), tmp_path / "w.pt")
    folders = [tmp_path / f"images/train/{i:03}" for i in range(classes)] + [tmp_path / "images/val/007"]
    for folder in folders:
        folder.mkdir(parents=True)
        Image.fromarray(np.full((9, 9, 3), len(folder.name), np.uint8)).save(folder / "0.png")
    where = ["--dataset", "digits", "--image_size", size] if classes == 10 else ["--tmp_data_dir", tmp_path / "images"]
    files = [f"--{suffix}={tmp_path}/x.{suffix}" for suffix in export.FORMATS]
    outcome = run("export.py", "PDARTS", "--weights", tmp_path / "w.pt", *where, *files, timeout=300)
    assert outcome.code == 0, outcome
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        network = torch.hub.load(str(ROOT), entry, source="local", weights=str(tmp_path / "w.pt")).eval()
        own = {"pdarts_cifar": NetworkCIFAR, "pdarts_imagenet": NetworkImageNet}[entry](
            *{10: (36, 10, 20), 1000: (48, 1000, 14)}[classes], False, genotypes.load("PDARTS")).eval()
        weights.load(str(tmp_path / "w.pt"), own)
        expected = own(images)[0]
        assert expected.std(0).mean() > 1e-3
        ways = {"hub": network(images)} | {suffix: run_file(tmp_path / f"x.{suffix}", network, images)
                                           for suffix, (_, run_file) in export.FORMATS.items()}
    errors = {name: (logits - expected).abs().max().item() for name, logits in ways.items()}
    print(errors)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
def test_the_commands_of_the_document_run_as_printed(tmp_path):
    search, train, take = COMMANDS
    (tmp_path / "p-darts").mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "fast"]:
        (tmp_path / "p-darts" / path.name).symlink_to(path)
    (tmp_path / "runs/search-use-1").mkdir(parents=True)  # the search takes minutes
    genotypes.save(genotypes.load("PDARTS"), tmp_path / "runs/search-use-1/genotype.json")
    assert search.startswith("python train_search.py")
    for command in (train, take):
        done = subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], cwd=tmp_path / "p-darts",
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
