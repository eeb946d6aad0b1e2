"""Settings: what the shipped files say, and that every mistake is named."""

from __future__ import annotations

import functools
import logging
import math
from pathlib import Path

import pytest
import yaml

from handmesh.config.augmentation import Augmentation
from handmesh.config.data import FreiHandData, PhotoData, SyntheticData
from handmesh.config.load import (
    RENAMED_KEYS,
    _read_tree,
    load_any_config,
    load_config,
    parse_config,
    shipped_configs,
)
from handmesh.config.model import ModelConfig
from handmesh.config.optimizer import OptimizerConfig
from handmesh.config.train import TrainConfig
from handmesh.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def written(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    load_any_config(path)


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("freihand")])
def test_the_freihand_recipes_watch_all_that_they_hold_out(name):
    """Of 32,560 photographs in four versions; and plus sees each 100 times, as its comment says."""
    config = load_config(name)
    assert config.data.freihand is not None
    held_out = 4 * round(config.data.freihand.validation * 32_560)
    assert config.evaluation_count == held_out
    if config.data.synthetic is None:
        assert config.epochs == 200
        return
    freihand, renders = 4 * 32_560 - held_out, config.data.synthetic.count
    share = config.data.freihand.weight / (config.data.freihand.weight + config.data.synthetic.weight)
    assert config.epochs * (freihand + renders) * share / freihand == pytest.approx(100, abs=0.5)


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path):
    assert load_config() == TrainConfig() == load_config(written(tmp_path, "# nothing\n"))


def test_a_config_survives_its_own_record():
    """What a run writes as config.yaml, and what a checkpoint keeps as JSON, gives the same settings back."""
    config = load_config(overrides=["augmentation.margin=[1.3, 1.9]", "data.directory=/elsewhere", "steps=7"])
    plain = config.model_dump(mode="json")
    assert parse_config(plain, "record") == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(plain)), "record") == config


def test_overrides_reach_into_lists(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {photos: [{path: a.jsonl}, {path: b.jsonl}]}")
    config = load_config(file, ["data.photos.1.path=elsewhere.jsonl", "data.photos.0.weight=2.0"])
    assert [str(source.path) for source in config.data.photos] == ["a.jsonl", "elsewhere.jsonl"]
    assert config.data.photos[0].weight == 2
    for wrong in ("data.photos.2.path=c.jsonl", "data.photos.first.path=c.jsonl"):
        with pytest.raises(ConfigError, match="none of its list's entries, 0 to 1"):
            load_config(file, [wrong])


def test_overrides_win_over_the_file_and_reach_any_depth(tmp_path):
    path = written(tmp_path, "steps: 5\nmodel: {backbone: fastvit_t8, resolution: 96}\n")
    config = load_config(path, ["model.resolution=128", "optimizer.clip_norm=1", "steps=6", "steps=7"])
    assert config.model == ModelConfig(backbone="fastvit_t8", resolution=128)
    assert config.optimizer.clip_norm == 1.0
    assert config.steps == 7


def test_overrides_reach_into_sections_that_are_null(tmp_path):
    """As a run's own config.yaml has sources that it did without, and a file where a section's lines are comments."""
    path = written(tmp_path, "optimizer:\ndata: {synthetic: {count: 9}, freihand: null}\n")
    config = load_config(path, ["optimizer.clip_norm=1", "data.freihand.weight=2"])
    assert (config.optimizer.clip_norm, config.data.freihand) == (1.0, FreiHandData(weight=2.0))


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2.5E-3", 2.5e-3), ("1", 1.0), ("0.5", 0.5)])
def test_numbers_may_be_written_as_people_write_them(text, value, tmp_path):
    """YAML 1.1 reads 1e-4 as text, for want of a dot."""
    assert load_config(None, [f"optimizer.learning_rate={text}"]).optimizer.learning_rate == value
    from_file = load_config(written(tmp_path, f"optimizer:\n  learning_rate: {text}\n"))
    assert from_file.optimizer.learning_rate == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.learning_rat=1", r"optimizer\.learning_rat is not a setting; did you mean 'learning_rate'"),
        ("stepz=1", r"stepz is not a setting; did you mean 'steps'"),
        ("zzz=1", r"zzz is not a setting; known: .*batch_size"),
        ("model.backbone=resnet50", r"model\.backbone: there is no backbone 'resnet50', only .*fastvit_ma36"),
        ("model.resolution=100", r"model\.resolution: .*multiple of 32.*found 100"),
        ("model.resolution=32", r"model\.resolution: .*64"),
        ("steps=many", r"steps: .*integer.*found 'many'"),
        ("steps=1.5", r"steps: .*integer.*found 1.5"),
        ("steps=true", r"steps: .*integer"),
        ("steps=-5", r"steps: .*greater"),
        ("seed=-1", r"seed: .*greater"),
        ("data.seed=-1", r"data\.synthetic\.seed: .*greater"),
        ("data.synthetic.cont=1", r"data\.synthetic\.cont is not a setting; did you mean 'count'"),
        ("data.freihand.crop=tight", r"data\.freihand\.crop: .*'frame', 'metro' or 'box'.*found 'tight'"),
        ("data.freihand.dir=x", r"data\.freihand\.dir is not a setting; known: crop, crops, directory"),
        ("data.freihand.versions=[gs, green]", r"data\.freihand\.versions\.1: .*found 'green'"),
        ("data.photos=[{path: mine, wight: 2}]", r"data\.photos\.0\.wight is not a setting; did you mean 'weight'"),
        ("data={}", "no source of data"),
        ("data.synthetic=3", r"data\.synthetic: .*dictionary.*found 3"),
        ("data={count: 5, synthetic: [1]}", r"data\.synthetic: .*dictionary.*found \(1,\)"),
        ("data={count: 5, synthetic: false}", r"data\.synthetic: .*dictionary.*found False"),
        ("accumulation=3", "batch_size 16 is no multiple of accumulation 3"),
        ("optimizer.decay_at=[0.5, 0.2]", "decay_at holds shares of the run"),
        ("model.resolution=544", "at most 512 px, and model.resolution is 544"),
        ("select=test_set", r"no data\.freihand"),
        ("batch_size=1", r"batch_size: .*2"),
        ("precision=float8", r"precision: .*bfloat16"),
        ("model=3", r"model: .*found 3"),
        ("optimizer.learning_rate=.nan", r"optimizer\.learning_rate: .*finite"),
        ("loss.vertices=.inf", r"loss\.vertices: .*finite"),
        ("loss.edges=-0.1", r"loss\.edges: .*greater than or equal to 0, found -0\.1"),
        ("augmentation.margin=[2, 1]", r"margin is \(low, high\)"),
        ("augmentation.margin=[0, 1]", r"margin is \(low, high\)"),
        ("augmentation.margin=1.5", r"augmentation\.margin: .*tuple.*found 1.5"),
        ("low_resolution_share=0.5", "low_resolution_share needs low_resolution"),
        ("model.resolution.x=1", "resolution is a value"),
        ("steps", "expected key.path=value"),
        ("=5", "expected key.path=value"),
        ("steps=[1", "not a YAML value"),
    ],
)
def test_every_mistake_is_named(override, says):
    with pytest.raises(ConfigError, match=says) as raised:
        load_config(None, ["model.resolution=64", override])
    assert "\n" not in str(raised.value)


def test_a_configuration_holds_what_differs_from_another(tmp_path):
    written(tmp_path, "steps: 5\nloss: {joints: 3.0, betas: 0.5}\noptimizer: {decay_at: [0.2, 0.4]}\n", "base.yaml")
    path = written(tmp_path, "extends: base.yaml\nloss: {joints: 4.0}\noptimizer: {decay_at: [0.3]}\n", "more.yaml")
    config = load_config(path, ["loss.betas=0.1"])
    assert (config.steps, config.loss.joints, config.loss.betas) == (5, 4.0, 0.1)
    assert config.optimizer.decay_at == (0.3,), "lists are replaced"
    shipped = load_config(written(tmp_path, "extends: smoke\nsteps: 7\n", "mine.yaml"))
    assert (shipped.steps, shipped.batch_size) == (7, load_config("smoke").batch_size)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("extends: nowhere", r"No configuration at nowhere.*freihand_ma36"),
        ("extends: [smoke]", "extends is .*wanted the name or the path"),
        ("extends: mine.yaml", "cannot extend itself"),
    ],
)
def test_what_cannot_be_extended_is_said(text, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        load_config(written(tmp_path, text, "mine.yaml"))


@pytest.mark.parametrize("crops", ["{metro: 0}", "{metro: -1, box: 1}"])
def test_shares_of_crops_are_above_zero(crops):
    with pytest.raises(ConfigError, match=r"data\.freihand: crops are protocols and their shares, all above 0"):
        load_config(None, [f"data.freihand.crops={crops}"])


def test_several_mistakes_are_named_at_once():
    with pytest.raises(ConfigError, match=r"model\.resolutio .*; stepz is"):
        parse_config({"stepz": 1, "model": {"resolutio": 64}}, "run.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "a: b: c", "\tsteps: 1", "'open"])
def test_a_file_that_is_no_table_of_settings_is_refused_by_name(text, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml") as raised:
        load_config(written(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["loss: {joints: 3}\nsteps: 5\nloss: {pose: 1}", "loss:\n  joints: 3\n  joints: 5"])
def test_nothing_is_said_twice(text, tmp_path):
    """The last one counted, and a run learnt without what the first had said."""
    with pytest.raises(ConfigError, match=r"run\.yaml.* (loss|joints) is there twice.*line 3"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "a: {<<: {x: 1}, <<: {y: 2}, z: 3}",
        "a: {<<: {x: 1, y: 1}, y: 2, z: 3}",
        # PyYAML joins what `it` merges and what it says, for `a`, before it reads `it` itself.
        "c: {d: {e: &it {<<: {x: 1, y: 1}, y: 2}}}\na: {<<: *it, y: 2, z: 3}",
    ],
)
def test_what_is_merged_is_not_said_twice(text, tmp_path):
    assert _read_tree(written(tmp_path, text))["a"] == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_settings_load_without_a_warning(name, caplog):
    """One of them went on with names of settings that had changed."""
    load_any_config(name)
    assert not caplog.messages


def test_shipped_settings_are_found_by_name(tmp_path, monkeypatch):
    """From a wheel there is no folder configs/ to give a path in."""
    monkeypatch.chdir(tmp_path)
    by_name = load_config("synthetic_t8")
    assert by_name.model.backbone == "fastvit_t8"
    assert by_name == load_config("configs/synthetic_t8.yaml") == load_config(ROOT / "configs" / "synthetic_t8.yaml")
    (tmp_path / "synthetic_t8.yaml").write_text("steps: 7\n")
    assert load_config("synthetic_t8.yaml").steps == 7, "a file of one's own goes first"
    assert set(shipped_configs()) == {path.stem for path in (ROOT / "configs").iterdir()}


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"No configuration at .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="synthetic_t8"):  # what there is, is said
        load_config("synthetic_t9")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_yaml_cannot_run_code(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(written(tmp_path, "steps: !!python/object/apply:os.getpid []\n"))


def test_settings_cannot_be_changed_afterwards():
    for settings in (TrainConfig(), Augmentation(), OptimizerConfig()):
        with pytest.raises(ValueError, match="frozen"):
            settings.seed = 1


def test_data_without_a_kind_are_synthetic_as_they_always_were():
    """Runs and files from before there were several kinds of sources."""
    flat = load_config(None, ["data.count=70", "data.directory=here"])
    assert flat == load_config(None, ["data.synthetic.count=70", "data.synthetic.directory=here"])
    assert flat.data.synthetic is not None
    assert (flat.data.synthetic.count, flat.data.freihand, flat.data.photos) == (70, None, ())
    mixed = load_config(None, ["data.count=70", "data.freihand.weight=3", "data.photos=[{path: mine}]"])
    assert mixed.data.synthetic == SyntheticData(count=70)
    assert mixed.data.freihand == FreiHandData(weight=3.0)
    assert mixed.data.photos == (PhotoData(path=Path("mine")),)
    assert load_config(None, ["data.freihand.weight=3"]).data.synthetic is None


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_settings_with_former_names_still_load_and_say_so(old, tmp_path, caplog):
    """In files, in overrides, and in the record of a run; given twice it is not known which one is meant."""
    new = RENAMED_KEYS[old]
    assert old.rpartition(".")[0] == new.rpartition(".")[0], "names change, places do not"
    base = ["start_from=handmesh_t8", *(["data={live: {}}"] if new.startswith("data.live") else [])]
    path = new.replace("data.scenes", "data.synthetic.scenes").split(".")  # `data` alone once meant synthetic hands
    value = functools.reduce(getattr, path, load_config(None, base))
    if isinstance(value, bool):
        value = str(not value).lower()
    else:
        value = [number + 0.5 for number in value] if isinstance(value, tuple) else (value + 1) / 3
    with caplog.at_level(logging.WARNING):
        found = load_config(None, [*base, f"{old}={value}"])
    assert found == load_config(None, [*base, f"{new}={value}"]) != load_config(None, base)
    assert caplog.messages == [f"settings: former names of settings: {old} is now {new}."]
    with pytest.raises(ConfigError, match=f"{old} is the former name of {new}, and both are given"):
        load_config(None, [*base, f"{old}={value}", f"{new}={value}"])


def test_two_beginnings_are_one_too_many():
    with pytest.raises(ConfigError, match="pretrained and start_from"):
        load_config(None, ["pretrained=fastvit_t8", "start_from=model.safetensors"])


def test_a_low_resolution_is_lower():
    share = "low_resolution_share=0.5"
    with pytest.raises(ConfigError, match=r"low_resolution 256 is above model\.resolution 224"):
        load_config(None, [share, "low_resolution=256"])
    assert load_config(None, ["low_resolution=256"]).low_resolution == 256, "and not used"
    assert load_config(None, [share, "low_resolution=192"]).low_resolution == 192
    assert load_config(None, [share, "low_resolution=256", "start_from=larger.safetensors"]).low_resolution == 256


def test_a_reparameterized_network_is_trained_from_a_trained_one():
    with pytest.raises(ConfigError, match="reparameterized goes on from a trained model: give start_from"):
        load_config(None, ["reparameterized=true"])
    with pytest.raises(ConfigError, match=r"set model\.drop_path to 0"):
        load_config(None, ["reparameterized=true", "start_from=model.safetensors", "model.drop_path=0.1"])


@pytest.mark.parametrize("section", ["loss.center", "loss.box", "loss.direction", "loss.handedness"])
def test_a_detector_loss_is_never_rewarded_for_being_wrong(section):
    with pytest.raises(ConfigError, match=rf"{section}: .*greater than or equal to 0, found -1"):
        load_any_config("detector_t8", [f"{section}=-1"])


def test_angles_are_radians():
    """Degrees turned every photograph by half a turn."""
    assert 0 < Augmentation().upright_noise < math.pi
    for angle in ("photo_augmentation.rotation", "photo_augmentation.upright_noise", "augmentation.upright_noise"):
        with pytest.raises(ConfigError, match=rf"{angle}: .*less than or equal to 3\.14.*found 90"):
            load_config(None, [f"{angle}=90"])
