import math
import os
import pickle
import re
import zipfile
from types import SimpleNamespace

from fusiondet.engine import checkpoint
from fusiondet.engine.checkpoint import FusionCheckpointer, load_model, network_differences, read_checkpoint
from fusiondet.errors import InputError
from tests.support.detectors import config

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn


class State:
    """A trainer as far as a checkpoint sees it."""

    def __init__(self, **values):
        self.values = values

    def state_dict(self):
        return self.values

    def load_state_dict(self, state):
        self.values = {key: state[key] for key in self.values}


def test_a_checkpoint_is_plain_data_and_comes_back(tmp_path):
    model, trainer = (
        nn.Linear(2, 3),
        State(optimizer={"lr": np.float64(0.5), "betas": (0.9, np.float32(0.5))}, iteration=4),
    )
    FusionCheckpointer(model, str(tmp_path), config_yaml="A: 1\n", trainer=trainer).save(
        "model_0000004", iteration=4
    )
    content = torch.load(tmp_path / "model_0000004.pth", weights_only=True)
    assert set(content) == {"model", "config_yaml", "optimizer", "iteration", "fusiondet"}
    assert content["config_yaml"] == "A: 1\n" and content["iteration"] == 4
    assert type(content["optimizer"]["lr"]) is float and content["optimizer"]["betas"] == (0.9, 0.5)
    assert set(content["fusiondet"]) == {"version", "detectron2", "torch"}
    other, state = nn.Linear(2, 3), State(optimizer=None)
    FusionCheckpointer(other, str(tmp_path), trainer=state).load(str(tmp_path / "model_0000004.pth"))
    assert torch.equal(other.weight, model.weight) and state.values["optimizer"]["lr"] == 0.5


def test_only_the_weights_when_asked(tmp_path):
    FusionCheckpointer(nn.Linear(1, 1), str(tmp_path), config_yaml="A: 1", trainer=State(x=1)).save("a")
    state = State(x=2)
    FusionCheckpointer(nn.Linear(1, 1), trainer=state).load(str(tmp_path / "a.pth"), checkpointables=[])
    assert state.values["x"] == 2


def test_the_best_one_does_not_become_the_one_to_resume_from(tmp_path):
    checkpointer = FusionCheckpointer(nn.Linear(1, 1), str(tmp_path), config_yaml="A: 1")
    checkpointer.save("model_0000001")
    checkpointer.save("model_best", tag=False, facts={"metric": "joint/AP50", "value": 3.0})
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert read_checkpoint(tmp_path / "model_best.pth")["fusiondet"]["value"] == 3.0


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    model = nn.Linear(1, 1)
    checkpointer = FusionCheckpointer(model, str(tmp_path), config_yaml="A: 1")
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def full_disk(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"], (
        "and nothing else lies around"
    )


def test_a_full_disk_names_the_file_and_what_is_safe(tmp_path, monkeypatch):
    def full_disk(content, path):
        raise RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(
        OSError, match="No space left on device. The checkpoints before it are whole"
    ) as error:
        FusionCheckpointer(nn.Linear(1, 1), str(tmp_path), config_yaml="A: 1").save("model_final")
    assert error.value.filename == str(tmp_path / "model_final.pth")
    assert not list(tmp_path.iterdir())


def test_other_ranks_write_nothing(tmp_path):
    FusionCheckpointer(nn.Linear(1, 1), str(tmp_path), config_yaml="A: 1", save_to_disk=False).save("a")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"1 missing \(bias\)"),
        (
            {"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "extra": torch.zeros(1)},
            r"1 unknown \(extra\)",
        ),
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, r"1 of another shape \(weight\)"),
    ],
)
def test_loading_is_strict_and_all_or_nothing(state, message):
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(InputError, match=message):
        load_model(model, state, "model.pth")
    assert torch.equal(model.weight, before)


def test_a_checkpoint_of_another_layout_names_tensors_and_keys(tmp_path):
    early, two = config(norm="BN"), config(norm="BN")
    early.MODEL.FUSION.OPTICAL_CHANNELS = two.MODEL.FUSION.OPTICAL_CHANNELS = 3
    two.MODEL.BACKBONE.NAME = "build_intermediate_fusion_resnet_fpn_backbone"
    two.MODEL.FUSION.EXCHANGE.res3, two.MODEL.FUSION.JOIN = "MMTM", "ConcatJoin"
    two.MODEL.FUSION.DISABLED, two.MODEL.RPN.NMS_THRESH, two.SEED = "sar", 0.5, 3  # which shape nothing
    FusionCheckpointer(build_model(early), str(tmp_path), config_yaml=early.dump()).save("early")
    with pytest.raises(InputError) as error:
        FusionCheckpointer(build_model(two), config_yaml=two.dump()).load(str(tmp_path / "early.pth"))
    message = str(error.value)
    assert re.search(
        r"early.pth: does not fit .* missing \(backbone.bottom_up.exchanges.res3.joint.bias, .*, …\); "
        r"\d+ unknown \(backbone.bottom_up.resnet.res2.0.conv1.norm.bias, ",
        message,
    )
    assert message.partition("config keys that differ: ")[2].partition(". Use")[0] == (
        "MODEL.BACKBONE.NAME (stored 'build_early_fusion_resnet_fpn_backbone', "
        "now 'build_intermediate_fusion_resnet_fpn_backbone'), MODEL.FUSION.EXCHANGE.res3 (stored '', now 'MMTM'), "
        "MODEL.FUSION.JOIN (stored 'SumJoin', now 'ConcatJoin')"
    )
    assert network_differences(early, early.clone()) == []


def test_tensors_that_fit_another_network_are_said(tmp_path, caplog):
    one, other = config(norm="BN"), config(norm="BN")
    for cfg in (one, other):
        cfg.MODEL.FUSION.OPTICAL_CHANNELS = 3
        cfg.MODEL.BACKBONE.NAME = "build_intermediate_fusion_resnet_fpn_backbone"
        cfg.MODEL.FUSION.EXCHANGE.res5 = "CrossAttention"
    other.MODEL.FUSION.CROSS_ATTENTION.HEADS = 8
    FusionCheckpointer(build_model(one), str(tmp_path), config_yaml=one.dump()).save("one")
    FusionCheckpointer(build_model(one), config_yaml=one.dump()).load(str(tmp_path / "one.pth"))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    FusionCheckpointer(build_model(other), config_yaml=other.dump()).load(str(tmp_path / "one.pth"))
    assert "CROSS_ATTENTION.HEADS (stored 4, now 8)" in caplog.text


def joint(cfg, *names):
    cfg = cfg.clone()
    cfg.MODEL.DENSE_HEADS.NAMES, cfg.MODEL.DENSE_HEADS.CONV_DIM = list(names), 8
    return cfg


def test_a_checkpoint_of_other_heads_names_them(tmp_path):
    detector = config(norm="BN")
    both = joint(detector, "DenseHeight", "Footprint")
    FusionCheckpointer(build_model(both), str(tmp_path), config_yaml=both.dump()).save("both")
    load = FusionCheckpointer(build_model(detector), config_yaml=detector.dump()).load
    with pytest.raises(InputError, match=r"\d+ unknown \(dense_heads.decoders.dense_height.*, …\)") as error:
        load(str(tmp_path / "both.pth"))
    assert "MODEL.DENSE_HEADS.NAMES (stored ['DenseHeight', 'Footprint'], now [])" in str(error.value)
    one = joint(detector, "DenseHeight")
    with pytest.raises(InputError, match=r"unknown \(dense_heads.decoders.footprint.* now \['DenseHeight'\]"):
        FusionCheckpointer(build_model(one), config_yaml=one.dump()).load(str(tmp_path / "both.pth"))
    other = build_model(both)
    FusionCheckpointer(other, config_yaml=both.dump()).load(str(tmp_path / "both.pth"))
    refined = both.clone()
    refined.MODEL.DENSE_HEADS.HEIGHT.REFINE = True
    assert network_differences(both, refined) == ["MODEL.DENSE_HEADS.HEIGHT.REFINE (stored False, now True)"]


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_bomb_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "config_yaml": "A: 1", "x": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "raw.pth"):
        with pytest.raises(InputError, match=f"{name}: not opened, it (holds posix.system|is damaged)"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_no_checkpoint_say_so(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save({"model": {"a": torch.zeros(10_000)}, "config_yaml": "A: 1"}, tmp_path / "half.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "half.pth").read_bytes()[:5000])
    with pytest.raises(InputError, match="half.pth: not opened, it is damaged"):
        read_checkpoint(tmp_path / "half.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"not a checkpoint of fusiondet.*MODEL.WEIGHTS"):
        read_checkpoint(tmp_path / "resnet.pth")
    assert not checkpoint.is_own_checkpoint(tmp_path / "resnet.pth")


def test_a_config_with_python_tags_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "OUTPUT_DIR: !!python/object/apply:os.system ['touch exploded']\n"
    torch.save({"model": {}, "config_yaml": evil}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil.pth.*not a plain YAML config"):
        checkpoint.stored_config(tmp_path / "evil.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("model", [3, [], {"weight": "text"}])
def test_a_checkpoint_without_tensors_is_refused(tmp_path, model):
    torch.save({"model": model, "config_yaml": "A: 1"}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="no tensors, in it"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04" + bytes(40), b"\x80\x02}q\x00(X", bytes(99)]
)
def test_damaged_files_never_advise_to_open_them_unprotected(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError, match="bad.pth: not opened, it is damaged") as refused:
        read_checkpoint(tmp_path / "bad.pth")
    assert "weights_only" not in str(refused.value)


# ---- Damage ----------------------------------------------------------------------------------------------


def content_of(**tensors):
    return {"model": {"a.weight": torch.ones(3), **tensors}, "config_yaml": "A: 1"}


def test_a_flipped_bit_anywhere_in_a_tensor_is_noticed(tmp_path):
    torch.save(content_of(**{"b.weight": torch.full((1000,), 1.5)}), tmp_path / "flip.pth")
    content = bytearray((tmp_path / "flip.pth").read_bytes())
    content[content.index(torch.full((8,), 1.5).numpy().tobytes()) + 5] ^= 1
    (tmp_path / "flip.pth").write_bytes(content)
    torch.load(tmp_path / "flip.pth", weights_only=True)  # which notices nothing
    with pytest.raises(
        InputError, match=r"flip.pth: not opened, it is damaged.*/data/1 in it has another check"
    ):
        read_checkpoint(tmp_path / "flip.pth")
    with pytest.raises(InputError, match="flip.pth: not opened, it is damaged"):
        checkpoint.is_own_checkpoint(tmp_path / "flip.pth")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused_with_their_names(tmp_path, value):
    bad = torch.tensor([1.0, value])
    torch.save(content_of(**{"b.weight": bad, "c.bias": bad}), tmp_path / "nan.pth")
    with pytest.raises(InputError, match=r"nan.pth: 2 of 3 tensors .* NaN or infinite \(b.weight, c.bias\)"):
        read_checkpoint(tmp_path / "nan.pth")
    with pytest.raises(InputError, match="b.weight"):
        checkpoint.is_own_checkpoint(tmp_path / "nan.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: torch.ones(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(3, device="meta"), "without content"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex"),
        (lambda: torch.ones(1).expand(10**6, 10**6), "a repetition of a few numbers"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, make, named):
    torch.save(content_of(odd=make()), tmp_path / "odd.pth")
    with pytest.raises(InputError, match="odd.pth: (tensor model.odd is|not opened)") as error:
        read_checkpoint(tmp_path / "odd.pth")
    assert named in str(error.value) or "could run code" in str(error.value)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"model": {1: torch.ones(1)}}, "a tensor in it is called 1"),
        ({"model": {1: torch.ones(1), "a": torch.ones(1)}}, "called 1"),
        ({"iteration": "three"}, "iteration is of type str, expected int"),
        ({"iteration": True}, "iteration is of type bool"),
        ({"optimizer": [1]}, "optimizer is of type list, expected dict"),
        ({"fusiondet": 5}, "fusiondet is of type int"),
        ({"config_yaml": 5}, "not a checkpoint of fusiondet"),
    ],
)
def test_entries_of_other_types_are_refused(tmp_path, entries, named):
    torch.save({**content_of(), **entries}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=named):
        read_checkpoint(tmp_path / "odd.pth")


def test_an_archive_that_grows_or_holds_itself_is_refused(tmp_path):
    torch.save(content_of(), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(InputError, match="packed.pth: not opened.*is compressed"):
        read_checkpoint(tmp_path / "packed.pth")
    endless = content_of()
    endless["self"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(InputError, match="endless.pth: not opened"):
        read_checkpoint(tmp_path / "endless.pth")
