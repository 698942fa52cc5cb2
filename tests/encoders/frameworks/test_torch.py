# SPDX-License-Identifier: Apache-2.0
"""PyTorch encoders: the same features as the module's, weights, and what is refused."""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.encoders import encode, noise, spec
from support.features import assert_features_equal

from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.layer_shapes import list_shapes
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError

torch = pytest.importorskip("torch", reason="PyTorch is large: pip install torch")

import my_torch  # noqa: E402

ENGINES = [
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
    ),
    "torch",
]
SIDES = (16, 20)


def images(count: int = 4) -> np.ndarray:
    return noise(count, (*SIDES, 3))


def make_spec(model: Any = "my_torch:encoder", **options: Any) -> Any:
    if model in vars(my_torch) and model[0].isupper():
        options, model = options | {"model_kwargs": {"name": model}}, "my_torch:make"
    return spec(model, **{"image_size": SIDES, "engine": "torch", **options})


def build_encoder(model: Any = "my_torch:encoder", **options: Any) -> Encoder:
    return build(make_spec(model, **options))


def call(module: Any, given: np.ndarray | None = None) -> np.ndarray:
    given = images() if given is None else given
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(given).permute(0, 3, 1, 2)).numpy()


def features_of(model: Any = "my_torch:encoder", **options: Any) -> np.ndarray:
    (features,) = encode(build_encoder(model, **options), images())
    return features


def refuse(model: Any = "my_torch:encoder", **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        build_encoder(model, **options)
    return str(refused.value)


def export(path: Path, module: Any = None, shape: tuple[int, ...] = (4, 3, *SIDES)) -> Path:
    module = my_torch.encoder() if module is None else module
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(shape),)), path)
    return path


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_output_is_that_of_the_module(engine: str) -> None:
    encoder = build_encoder(engine=engine)
    assert (encoder.engine, encoder.image_shape) == (engine, (*SIDES, 3))
    assert "it is put into evaluation mode" in " ".join(encoder.notes)
    assert_features_equal(encode(encoder, images())[0], call(my_torch.encoder()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", ["gap", "gmp", "gem", "flatten"])
def test_maps_are_pooled_over_their_positions(engine: str, pool: str) -> None:
    encoder = build_encoder(layers=("maps", "first"), pool=pool, engine=engine)
    pooling = {
        "gap": lambda x: x.mean((2, 3)),
        "gmp": lambda x: x.max((2, 3)),
        "gem": lambda x: (np.maximum(x, 1e-6) ** 3).mean((2, 3)) ** (1 / 3),
        "flatten": lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1),
    }[pool]
    module = my_torch.encoder()
    until_maps = torch.nn.Sequential(module.first, module.norm, torch.nn.ReLU(), module.maps)
    maps = (call(until_maps), call(module.first))
    for features, values in zip(encode(encoder, images()), maps, strict=True):
        assert_features_equal(features, pooling(values.astype(np.float64)))
    assert [output.column for output in encoder.outputs] == ["feature_maps", "feature_first"]
    assert "its channels are axis 1" in " ".join(encoder.notes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_tokens_are_pooled(engine: str, pool: str) -> None:
    encoder = build_encoder("Tokens", pool=pool, engine=engine)
    tokens = call(my_torch.make("Tokens"))
    assert tokens.shape == (4, 21, 12)
    expected = tokens.mean(1) if pool == "gap" else tokens[:, 0]
    assert_features_equal(encode(encoder, images())[0], expected)


def test_maps_with_their_channels_last_are_recognized() -> None:
    encoder = build_encoder("Tokens", layers=("grid", "patches"))
    grid, patches = encode(encoder, images())
    assert encoder.outputs[0].channel_axis == -1
    assert_features_equal(grid, call(my_torch.make("Tokens").patches).mean((2, 3)))
    assert_features_equal(patches, grid)


def test_an_object_is_left_as_it_is() -> None:
    module = my_torch.encoder()
    module.weight_to_learn = module.first.weight
    assert_features_equal(features_of(module), call(my_torch.encoder()))
    assert module.training
    assert module.first.weight.requires_grad


def test_a_function_is_called_once() -> None:
    calls = []

    def make() -> Any:
        calls.append(1)
        return my_torch.encoder()

    assert_features_equal(features_of(make), call(my_torch.encoder()))
    assert len(calls) == 1


def test_a_compiled_module_is_the_module() -> None:
    encoder = build_encoder(torch.compile(my_torch.encoder()), layers=("head",))
    assert_features_equal(encode(encoder, images())[0], call(my_torch.encoder()))


def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "torch.export.pt2_archive" else found(name),
    )
    assert "is too old; at least 2.8 is needed" in refuse()


def test_half_precision_is_computed_in_float32() -> None:
    encoder = build_encoder(my_torch.encoder().half())
    assert "weights of type torch.float16 are computed in float32" in " ".join(encoder.notes)
    expected = call(my_torch.encoder().half().float())
    assert_features_equal(encode(encoder, images())[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_is_close(engine: str) -> None:
    features = features_of(engine=engine, precision="bfloat16")
    expected = call(my_torch.encoder())
    assert np.abs(features - expected).max() < 0.05 * np.abs(expected).max()


def test_what_the_module_does_to_pixels_is_known() -> None:
    assert not build_encoder().rescaling.expects_levels
    rescaling = build_encoder("Rescaling").rescaling
    assert rescaling.expects_levels
    assert rescaling.factors == pytest.approx((4 / 255,) * len(rescaling.factors))
    assert rescaling.offsets == pytest.approx((-2,) * len(rescaling.offsets))


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_that_work_in_place(engine: str) -> None:
    encoder = build_encoder("InPlace", layers=("norm", "head"), engine=engine)
    assert encoder.rescaling.expects_levels
    assert encoder.rescaling.factors == pytest.approx((1 / 64,) * len(encoder.rescaling.factors))
    module, given = my_torch.make("InPlace"), images() * 255
    norm, head = encode(encoder, given)
    assert_features_equal(head, call(module, given))
    before = torch.nn.Sequential(module.first, module.norm)
    expected = call(before, ((given - 127.5) / 64).astype(np.float32)).mean((2, 3))
    assert_features_equal(norm, expected)


def test_the_run_folder_names_no_file_of_the_user() -> None:
    graph = build_encoder().graph or b""
    with zipfile.ZipFile(io.BytesIO(graph)) as archive:
        contents = b"".join(map(archive.read, archive.namelist()))
    assert b"my_torch" not in contents
    assert len(graph) < 60_000


def test_nothing_that_the_layers_do_not_need_is_kept() -> None:
    encoder = build_encoder(layers=("first",))
    with zipfile.ZipFile(io.BytesIO(encoder.graph or b"")) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("weights_config.json"))
        kept = json.loads(archive.read(name))["config"]
    assert set(kept) == {"module.first.weight", "module.first.bias"}


# --- layers --------------------------------------------------------------------------------------


def test_layers_are_listed_with_their_shapes() -> None:
    models, layers = list_shapes(make_spec("Tokens"))
    assert models == {}
    assert layers["grid"] == (None, 4, 5, 12)
    assert layers["block.linear1"] == (None, 21, 24)
    # It returns a tuple.
    assert "attention" not in layers


def test_one_of_several_outputs_is_named() -> None:
    text = refuse("Several")
    assert "it has 3 outputs; choose one with --layer: maps_out, vector, size" in text
    vector = call(my_torch.encoder())
    assert_features_equal(features_of("Several", layers=("vector",)), vector)
    assert {"maps_out", "vector"} < set(list_shapes(make_spec("Several"))[1])


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        ("Encoder", "mapps", "no such layer; the nearest are maps"),
        ("Twice", "activation", "the module calls this layer 2 times"),
        ("Twice", "unused", "the module never calls it"),
        ("Tokens", "attention", "it gives tuple; one float tensor of rank 2 to 4 is needed"),
    ],
)
def test_layers_that_cannot_be_taken(model: str, layer: str, why: str) -> None:
    text = refuse(model, layers=(layer,))
    assert f"--layer {layer}: " in text
    assert why in text


# --- exported programs ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exported_program_has_the_features_of_its_module(tmp_path: Path, engine: str) -> None:
    encoder = build(spec(export(tmp_path / "encoder.pt2"), engine=engine))
    assert encoder.image_shape == (*SIDES, 3)
    assert_features_equal(encode(encoder, images())[0], call(my_torch.encoder()))


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = export(tmp_path / "encoder.pt2").rename(tmp_path / "model.bin")
    assert_features_equal(features_of(path, image_size=None), call(my_torch.encoder()))


def test_the_batch_size_follows_the_program(tmp_path: Path) -> None:
    path = export(tmp_path / "encoder.pt2", shape=(2, 3, *SIDES))
    encoder = build(spec(path, engine="torch"))
    assert encoder.spec.batch_size == 2
    assert "takes batches of 2 images only" in " ".join(encoder.notes)
    assert_features_equal(encode(encoder, images(2))[0], call(my_torch.encoder(), images(2)))


def test_outputs_of_a_program_have_names(tmp_path: Path) -> None:
    class Pair(my_torch.Encoder):
        def forward(self, images):
            return super().forward(images), images.mean((2, 3))

    path = export(tmp_path / "m.pt2", my_torch.filled(Pair()))
    assert set(list_shapes(spec(path))[1]) == {"output_0", "output_1"}
    assert "choose one with --layer: output_0, output_1" in refuse(path, image_size=None)
    features = features_of(path, image_size=None, layers=("output_1",))
    assert_features_equal(features, images().mean((1, 2)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weights", "a.pt"),
        ("weights", "random"),
        ("submodel", "inner"),
        ("signature", "serving_default"),
        ("tags", ("serve",)),
        ("model_kwargs", {"a": 1}),
    ],
)
def test_options_for_other_models_are_refused(tmp_path: Path, option: str, value: Any) -> None:
    text = refuse(export(tmp_path / "m.pt2"), **{option: value})
    assert f"--{option.replace('_', '-')}" in text
    assert "is an exported program" in text


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = export(tmp_path / "m.pt2"), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    assert "pip install 'ray_embed[torch]'" in refuse(path)


def test_a_damaged_program(tmp_path: Path) -> None:
    path = export(tmp_path / "m.pt2")
    path.write_bytes(path.read_bytes()[:-300])
    assert "it is no archive of torch.export.save, or it is damaged" in refuse(path)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def change(path: Path, name: str, content: Any) -> None:
    """Change or add a file in an archive."""
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    entry = f"{next(iter(files)).partition('/')[0]}/{name}"
    files[entry] = content(files.get(entry, b"")) if callable(content) else content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for each, data in files.items():
            archive.writestr(each, data)


def changed_json(change_content: Any) -> Any:
    def edit(content: bytes) -> bytes:
        loaded = json.loads(content)
        change_content(loaded)
        return json.dumps(loaded).encode()

    return edit


def use_pickle(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def call_system(model: Any) -> None:
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def evaluate(model: Any) -> None:
    sizes = next(iter(model["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
    sizes[0] = {"as_expr": {"expr_str": "__import__('os').system('true')", "hint": None}}


def evaluate_text(model: Any) -> None:
    sizes = next(iter(model["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
    sizes[0] = {"as_expr": {"expr_str": "Max('print(1)', 2)", "hint": None}}


@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        ("data/weights/model_weights_config.json", changed_json(use_pickle), "as a pickle"),
        ("data/weights/model.pt", b"", "it holds a pickle (data/weights/model.pt)"),
        ("data/constants/opaque_obj_0", b"", "it holds a pickle (data/constants/opaque_obj_0)"),
        ("data/aotinductor/model/model.so", b"", "it holds compiled code"),
        ("models/model.json", changed_json(call_system), "its graph calls 'torch.os.system'"),
        ("models/model.json", changed_json(evaluate), "a size that is no arithmetic"),
        ("models/model.json", changed_json(evaluate_text), "a size that is no arithmetic"),
    ],
)
def test_programs_that_could_run_code_are_not_loaded(
    tmp_path: Path, name: str, edit: Any, why: str
) -> None:
    path = export(tmp_path / "m.pt2")
    change(path, name, edit)
    text = refuse(path, image_size=None)
    assert why in text
    assert "such archives are not loaded" in text


def test_example_inputs_are_not_unpickled(tmp_path: Path) -> None:
    path, touched = export(tmp_path / "m.pt2"), tmp_path / "touched"
    sink = io.BytesIO()
    torch.save(Attack(touched), sink)
    change(path, "data/sample_inputs/model.pt", sink.getvalue())
    assert "its example inputs are a pickle" in refuse(path, image_size=None)
    assert not touched.exists()


def test_sizes_that_are_not_fixed_are_asked_for(tmp_path: Path) -> None:
    free = {"images": {2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}}
    program = torch.export.export(
        my_torch.encoder().eval(), (torch.zeros(4, 3, *SIDES),), dynamic_shapes=free
    )
    torch.export.save(program, tmp_path / "m.pt2")
    text = refuse(tmp_path / "m.pt2", image_size=None)
    assert "it has no fixed input size; give --image-size H,W" in text
    features = features_of(tmp_path / "m.pt2", image_size=SIDES)
    assert_features_equal(features, call(my_torch.encoder()))


# --- weights -------------------------------------------------------------------------------------


def save(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def state(seed: int = 2) -> dict[str, Any]:
    return dict(my_torch.encoder(seed).state_dict())


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (state, ""),
        (lambda: {"epoch": 3, "state_dict": state()}, "its 'state_dict' is taken"),
        (lambda: {"model": state(), "optimizer": {}}, "its 'model' is taken"),
        (lambda: {f"module.{n}": v for n, v in state().items()}, "begin with 'module.'"),
        (lambda: {f"model.encoder.{n}": v for n, v in state().items()}, "with 'model.encoder.'"),
        (lambda: {n: v for n, v in state().items() if "num_batches" not in n}, ""),
    ],
)
def test_weights_are_loaded(tmp_path: Path, content: Any, note: str) -> None:
    encoder = build_encoder(weights=save(tmp_path / "w.pt", content()))
    assert_features_equal(encode(encoder, images())[0], call(my_torch.encoder(2)))
    assert note in " ".join(encoder.notes)


def without(name: str) -> Any:
    return {key: value for key, value in state().items() if key != name}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: without("head.bias"), "it lacks 'head.bias' (8,)"),
        (lambda: state() | {"more.w": torch.zeros(3, 2)}, "the model has no 'more.w' (3, 2)"),
        (
            lambda: state() | {"head.weight": torch.zeros(3, 2)},
            "'head.weight' has the shape (3, 2) instead of (8, 10)",
        ),
        (lambda: {"epoch": 3}, "it holds a dict with epoch, and no state dict"),
        (my_torch.encoder, "reading it would run code"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, content: Any, why: str) -> None:
    text = refuse(weights=save(tmp_path / "w.pt", content()))
    assert f"--weights {tmp_path / 'w.pt'}: " in text
    assert why in text


def test_weights_that_would_run_code(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    path = save(tmp_path / "w.pt", {"state_dict": Attack(touched)})
    assert "reading it would run code" in refuse(weights=path)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(Attack(touched)))
    assert f"--weights {tmp_path / 'w.pkl'}: " in refuse(weights=str(tmp_path / "w.pkl"))
    assert not touched.exists()


def test_safetensors_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b'{"__metadata__":{}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "safetensors" else found(name)
    )
    assert "pip install safetensors" in refuse(weights=str(path))


def test_safetensors_are_loaded(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    files.save_file(state(), tmp_path / "w.safetensors")
    features = features_of(weights=str(tmp_path / "w.safetensors"))
    assert_features_equal(features, call(my_torch.encoder(2)))


def test_random_weights_have_a_fixed_seed() -> None:
    first, again = (build_encoder(weights="random") for _ in range(2))
    assert first.weights_digest == again.weights_digest
    assert first.weights_digest != build_encoder().weights_digest
    assert "Tokens)" in (text := refuse("Tokens", weights="random"))
    assert "no reset_parameters" in text


def test_weights_of_the_whole_load_into_a_submodel(tmp_path: Path) -> None:
    expected = call(my_torch.encoder())
    assert_features_equal(features_of("my_torch:wrapped", submodel="encoder"), expected)
    weights = save(tmp_path / "w.pt", {f"encoder.{n}": v for n, v in state().items()})
    features = features_of("my_torch:wrapped", submodel="encoder", weights=weights)
    assert_features_equal(features, call(my_torch.encoder(2)))
    text = refuse("my_torch:wrapped", submodel="decoder")
    assert "no module called 'decoder'; the modules in it: encoder" in text


# --- identity ------------------------------------------------------------------------------------


def test_the_architecture_does_not_depend_on_weights() -> None:
    first, other = build_encoder(), build_encoder(model_kwargs={"seed": 2})
    assert first.architecture == other.architecture
    assert first.weights_digest != other.weights_digest
    assert first.graph == build_encoder().graph
    wider = build_encoder(model_kwargs={"size": 9})
    assert wider.architecture != first.architecture
    assert build_encoder("Rescaling").architecture != first.architecture


def test_initial_weights_of_an_earlier_start_are_used() -> None:
    first = build_encoder("my_torch:untrained")
    again = build(make_spec("my_torch:untrained"), 1, first.weights)
    assert again.weights_digest == first.weights_digest
    assert build_encoder("my_torch:untrained").weights_digest != first.weights_digest


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("Sampling", "two calls on the same images give different features"),
        ("Centering", "change with the other images of its batch"),
        ("Masked", "its forward needs images, mask"),
        ("Branching", "torch.export cannot export it"),
    ],
)
def test_unsuitable_modules(model: str, why: str) -> None:
    assert why in refuse(model)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    scripted = torch.jit.script(my_torch.encoder())
    assert "it is a module of TorchScript" in refuse(scripted)
    scripted.save(str(tmp_path / "m.pt"))
    text = refuse(tmp_path / "m.pt")
    assert "a TorchScript archive" in text
    assert "torch.export.save" in text


def test_pickled_modules_are_refused(tmp_path: Path) -> None:
    text = refuse(Path(save(tmp_path / "m.pt", my_torch.encoder())))
    assert "a pickled module, which runs code when it is read" in text
    assert "--model module:callable" in text


def test_a_module_that_fails_is_quoted() -> None:
    text = refuse("Tokens", image_size=(3, 20))
    assert "it fails on a batch of images (N, C, H, W) (3, 3, 3, 20): Calculated padded" in text
    assert "check --image-size" in text


def test_the_first_convolution_tells_the_channels() -> None:
    assert build_encoder(model_kwargs={"channels": 1}).image_shape == (*SIDES, 1)


def test_a_missing_image_size_is_asked_for() -> None:
    assert "it has no fixed input size; give --image-size H,W" in refuse(image_size=None)


@pytest.mark.parametrize("option", [{"tags": ("serve",)}, {"signature": "serving_default"}])
def test_options_of_saved_models_are_refused(option: dict[str, Any]) -> None:
    (name,) = option
    assert f"--{name}: it is for SavedModel folders" in refuse(**option)
    assert f"--{name}: --model Encoder is a PyTorch module" in refuse(my_torch.encoder(), **option)


def test_nothing_imports_torch_for_other_models() -> None:
    code = (
        "import sys; from ray_embed.encoders.frameworks.registry import find_framework\n"
        "from ray_embed.encoders.spec import EncoderSpec\n"
        "print(find_framework(EncoderSpec(model='m:f', folder='.')).name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["keras", "False"], done.stderr


@pytest.mark.skipif(
    not any((Path(path) / "triton").is_dir() for path in sys.path), reason="no Triton"
)
@pytest.mark.parametrize("first", ["torch", "tensorflow"])
def test_a_program_is_exported_beside_triton(tmp_path: Path, first: str):
    """Triton crashes Python if it is imported after TensorFlow, and PyTorch imports it."""
    code = f"""
import {first}
from support.encoders import spec
from ray_embed.encoders.build import build
print(build(spec("my_torch:encoder", image_size=(16, 20), engine="torch")).engine)
"""
    (tmp_path / "check.py").write_text(code)
    tests = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            map(str, (tests, tests / "support" / "project", tests.parent))
        )
    }
    done = subprocess.run(
        [sys.executable, tmp_path / "check.py"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "torch"), done.stderr[-2000:]
