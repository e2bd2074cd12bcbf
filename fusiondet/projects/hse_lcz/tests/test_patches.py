"""Reading patches: what is in the file arrives, one patch at a time; what is wrong with it is said."""

import os
import pickle

from fusiondet.errors import InputError
from fusiondet.files import read_json, write_json
from fusiondet.io.coco import read_coco
from fusiondet.projects.hse_lcz import patches
from fusiondet.projects.hse_lcz.patches import (
    LCZ_CLASSES,
    OPTICAL_BANDS,
    SAR_BANDS,
    read_hse,
    read_labels,
    read_patches,
)
from fusiondet.projects.hse_lcz.tests.patch_files import arrays, one_hot, write_hdf5, write_split

import h5py
import numpy as np
import pytest
import rasterio


def test_labels_and_extents_arrive_and_pixels_when_asked_for(tmp_path):
    split = read_patches(write_split(tmp_path))
    assert len(split) == 4 and split.lcz.tolist() == [0, 5, 16, 5]
    np.testing.assert_array_equal(split.hse, np.array([0.9, 0.5, np.nan, 0.4], np.float32))
    image = split.read(2, ["B4", "B2", "B12"])
    assert image.shape == (3, 32, 32) and image.dtype == np.float32
    assert image[:, 0, 0].tolist() == [202, 200, 209]
    assert split.read(1, [], ["VV_imag"])[0, 5, 5] == -103
    assert split.read(0, OPTICAL_BANDS, SAR_BANDS).shape == (18, 32, 32)
    record = split.record(2)
    assert (record["image_id"], record["lcz"]) == (2, 16) and np.isnan(record["hse"])
    assert record["split"] is split and record["file_name"].endswith("train.h5[2]")
    assert len(split.absent_classes()) == 14 and "water" not in split.absent_classes()


def test_rows_and_columns_are_not_exchanged_and_intensities_become_db(tmp_path):
    sen1 = np.zeros((4, 32, 32, 8))
    sen1[1, 3, 7] = [1, 2, 3, 4, 0.1, 10, 5, 6]
    sen1[1, 0, 0, 4] = -1
    sen1[1, 9, 9, 0], sen1[1, 9, 10, 0] = np.nan, np.inf
    split = read_patches(write_split(tmp_path, sen1=sen1))
    image = split.read(1, ["B2"], SAR_BANDS)
    assert image[1:, 3, 7].tolist() == [1, 2, 3, 4, -10, 10, 5, 6]
    assert image[5:7, 0, 0] == pytest.approx(-50), "the floor where there is no power"
    assert np.isnan(image[1, 9, 9]) and np.isnan(image[1, 9, 10]) and np.isfinite(image[0]).all()


def test_statistics_are_those_of_the_pixels(tmp_path):
    rng = np.random.default_rng(0)
    sen2 = rng.normal(3, 2, (4, 32, 32, 10))
    sen2[0, :4, :, 2] = np.nan
    split = read_patches(write_split(tmp_path, sen2=sen2))
    mean, std = split.statistics(["B4", "B3"], ["VH"])
    np.testing.assert_allclose(mean[:2], [np.nanmean(sen2[..., 2]), sen2[..., 1].mean()], rtol=1e-5)
    np.testing.assert_allclose(std[:2], [np.nanstd(sen2[..., 2]), sen2[..., 1].std()], rtol=1e-5)
    assert mean[2] == pytest.approx(-50) and std[2] == pytest.approx(0, abs=1e-4)
    assert split._open is None, "what is forked later does not inherit an open file"
    sen2[...] = np.nan
    empty = read_patches(write_split(tmp_path, "empty", sen2=sen2))
    with pytest.raises(InputError, match="band B2 has no data"):
        empty.statistics(["B2"], [])


def test_the_file_is_opened_once_per_process_and_never_pickled(tmp_path, monkeypatch):
    opened = []
    real = patches.open_hdf5
    monkeypatch.setattr(patches, "open_hdf5", lambda path: opened.append(path) or real(path))
    split = read_patches(write_split(tmp_path))
    opened.clear()
    first = split.read(0), split.read(1)
    assert len(opened) == 1
    other = pickle.loads(pickle.dumps(split))
    assert other._open is None and (other.read(1) == first[1]).all() and len(opened) == 2
    child = os.fork()
    if child == 0:
        ok = (split.read(1) == first[1]).all() and len(opened) == 3
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0, "a worker opens it for itself"
    split.close()
    assert (split.read(0) == first[0]).all() and len(opened) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sen2": None}, r"sen2 is missing; the file has label, sen1"),
        ({"label": None}, "label is missing"),
        ({"sen1": np.zeros((4, 32, 32, 10))}, r"sen1 has shape \(4, 32, 32, 10\), expected \(N, 32, 32, 8\)"),
        ({"sen2": np.zeros((4, 10, 32, 32))}, r"sen2 has shape .*, expected \(N, 32, 32, 10\)"),
        ({"label": np.zeros(4)}, r"label has shape \(4,\), expected \(N, 17\)"),
        ({"sen2": np.zeros((3, 32, 32, 10))}, "as many labels as patches, found sen1 4, sen2 3, label 4"),
        ({"label": np.array([[b"x"] * 17] * 4)}, "label holds .*, expected numbers"),
        ({"label": np.zeros((4, 17))}, r"label of patch 0 is \[0.0, .*expected a single 1 among 17"),
        ({"label": one_hot([0, 1, 2, 3]) * 0.5}, "label of patch 0 is"),
        ({"label": one_hot([0, 1, 2, 3]) + one_hot([0, 1, 2, 5])}, "label of patch 0 is"),
        ({"label": one_hot([0, 1, 2, 3]) + one_hot([5, 5, 5, 5])}, "expected a single 1"),
        ({"label": np.where(one_hot([1, 1, 1, 1]) == 1, np.nan, 0)}, "expected a single 1"),
        ({"sen1/deep": np.zeros(3), "sen1": None}, "sen1 is a group, expected a data set"),
    ],
)
def test_other_layouts_are_refused(tmp_path, change, message):
    path = write_hdf5(tmp_path / "a.h5", **change)
    with pytest.raises(InputError, match=message) as found:
        read_labels(path)
    assert "a.h5" in str(found.value)


def test_a_wrong_label_far_down_is_found_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "_ROWS", 3)
    content = arrays([0, 1, 2, 3, 4, 5, 6, 7])
    content["label"][7, 2] = 1
    with pytest.raises(InputError, match="label of patch 7"):
        read_labels(write_hdf5(tmp_path / "a.h5", content))
    content["label"][7, 2] = 0
    assert read_labels(write_hdf5(tmp_path / "a.h5", content)).tolist() == list(range(8))


def test_no_patch_at_all(tmp_path):
    empty = {name: values[:0] for name, values in arrays().items()}
    with pytest.raises(InputError, match="holds no patch"):
        read_labels(write_hdf5(tmp_path / "a.h5", empty))


def test_links_to_other_files_are_refused_whatever_their_kind(tmp_path):
    secret = write_hdf5(tmp_path / "elsewhere" / "secret.h5")
    for name, link in (
        ("external", h5py.ExternalLink(str(secret), "label")),
        ("dangling", h5py.ExternalLink("nowhere.h5", "label")),
        ("soft", h5py.SoftLink("/sen1")),
    ):
        path = write_hdf5(tmp_path / f"{name}.h5", label=link)
        with pytest.raises(InputError, match="label is a link, which may lead to any other file"):
            read_labels(path)
    inside = write_hdf5(tmp_path / "group.h5", folder=h5py.ExternalLink(str(secret), "/"))
    with pytest.raises(InputError, match="folder/label is a link"):
        read_hse(inside, 4, "folder/label")


@pytest.mark.parametrize("name", ["/", ".", "a//b", "\0", "hse/", "../hse", "ä" * 300, "label/x"])
def test_odd_names_of_data_sets_are_missing_ones(tmp_path, name):
    with pytest.raises(InputError, match="is missing|has shape|is a group"):
        read_hse(write_hdf5(tmp_path / "a.h5"), 4, name)


def test_a_link_to_another_file_is_not_followed_to_find_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")  # would hang whoever opens it
    path = write_hdf5(tmp_path / "a.h5", label=h5py.ExternalLink(str(tmp_path / "pipe.h5"), "label"))
    with pytest.raises(InputError, match="label is a link"):
        read_labels(path)


def test_data_sets_whose_numbers_lie_in_other_files_are_refused(tmp_path):
    secret = write_hdf5(tmp_path / "secret.h5")
    layout = h5py.VirtualLayout((4, 17), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "label", (4, 17))
    path = write_hdf5(tmp_path / "virtual.h5", label=None)
    with h5py.File(path, "a") as f:
        f.create_virtual_dataset("label", layout)
    raw = tmp_path / "raw.bin"
    raw.write_bytes(one_hot([0, 5, 16, 5]).tobytes())
    outside = write_hdf5(tmp_path / "outside.h5", label=None)
    with h5py.File(outside, "a") as f:
        f.create_dataset("label", (4, 17), "f8", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
    for bad in (path, outside):
        with pytest.raises(InputError, match="put together from other files"):
            read_labels(bad)


def test_files_that_are_no_hdf5(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match=r"text.h5: cannot be opened as HDF5"):
        read_labels(tmp_path / "text.h5")
    with pytest.raises(InputError, match=r"gone.h5: no such file"):
        read_labels(tmp_path / "gone.h5")
    whole = write_hdf5(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"half.h5: cannot be opened as HDF5"):
        read_labels(tmp_path / "half.h5")


def test_damaged_pixels_name_the_patch(tmp_path):
    path = write_split(tmp_path, sen2=None)
    with h5py.File(tmp_path / "hdf5" / "train.h5", "a") as f:
        data = f.create_dataset("sen2", (4, 32, 32, 10), "f8", chunks=(1, 32, 32, 10), compression="gzip")
        data[:] = 1.0
        offset = data.id.get_chunk_info(2).byte_offset
    with open(tmp_path / "hdf5" / "train.h5", "r+b") as f:
        f.seek(offset)
        f.write(b"\xff" * 20)
    split = read_patches(path)
    assert split.read(1)[0, 0, 0] == 1
    with pytest.raises(InputError, match="train.h5: patch 2 of sen2 cannot be read"):
        split.read(2)


def test_chunks_that_make_reading_slow_are_pointed_out(tmp_path):
    path = write_split(tmp_path, sen2=None)
    with h5py.File(tmp_path / "hdf5" / "train.h5", "a") as f:
        f.create_dataset("sen2", (4, 32, 32, 10), "f8", chunks=(4, 32, 32, 10), maxshape=(None, 32, 32, 10))
    assert read_patches(path).chunk_notes() == []  # 4 patches are 320 KiB
    with h5py.File(tmp_path / "hdf5" / "train.h5", "a") as f:
        del f["sen2"]
        f.create_dataset("sen2", (4, 32, 32, 10), "f8", chunks=(100, 32, 32, 10), maxshape=(None, 32, 32, 10))
    (note,) = read_patches(path).chunk_notes()
    assert "sen2 is stored in chunks of 8 MiB" in note and "CHUNK=1x32x32x10" in note


# ---- extents ----


def test_extents_from_either_kind_of_file(tmp_path):
    values = np.array([0.0, 1.0, np.nan, 0.25])
    np.save(tmp_path / "a.npy", values)
    write_hdf5(tmp_path / "b.h5", {"hse": values, "other": values[::-1]})
    for path, dataset, expected in (
        ("a.npy", None, values),
        ("b.h5", None, values),
        ("b.h5", "other", values[::-1]),
    ):
        np.testing.assert_array_equal(read_hse(tmp_path / path, 4, dataset), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0.1, 0.2, 0.3]), r"float64 of shape \(3,\), expected one number per patch, \(4,\)"),
        (np.zeros((4, 1)), r"shape \(4, 1\)"),
        (np.array(["a"] * 4), "expected one number per patch"),
        (
            np.array([0.1, 55.0, 80.0, 0.2]),
            r"patch 1 is 55, expected a share .*\(2 are neither\). Divide percentages",
        ),
        (np.array([0.1, -1.0, 0.1, 0.1]), "patch 1 is -1, expected a share from 0 to 1, NaN where unknown"),
        (np.array([np.inf, 0, 0, 0]), "patch 0 is inf"),
        (np.array([None] * 4), "not an array of numbers"),
    ],
)
def test_extents_that_are_none(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(InputError, match=message) as found:
        read_hse(tmp_path / "a.npy", 4)
    assert "a.npy" in str(found.value)


def test_files_that_hold_no_extents(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="not an array of numbers"):
        read_hse(tmp_path / "a.npy", 4)
    with pytest.raises(InputError, match="gone.npy: no such file"):
        read_hse(tmp_path / "gone.npy", 4)
    with pytest.raises(InputError, match=r"a.csv: expected .npy"):
        read_hse(tmp_path / "a.csv", 4)
    with pytest.raises(InputError, match="hse is missing; the file has label, sen1, sen2"):
        read_hse(write_hdf5(tmp_path / "a.h5"), 4)


# ---- the JSON ----


def changed(tmp_path, **change):
    path = write_split(tmp_path)
    write_json({**read_json(path), **change}, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"info": {}}, "is no split of patches"),
        ({"info": None}, "is no split of patches"),
        ({"patches": {"file_name": "../secret.h5", "count": 4}}, "points outside its folder"),
        ({"patches": {"file_name": "/etc/passwd", "count": 4}}, "points outside its folder"),
        ({"patches": {"file_name": 3, "count": 4}}, "'patches' is .*expected an object with a file_name"),
        ({"patches": [1]}, "'patches' is"),
        ({"patches": {"file_name": "hdf5/train.h5", "count": 5}}, "says 5 patches, but .* has 4"),
        ({"hse": "hse/train.npy"}, "'hse' is hse/train.npy, expected an object"),
        ({"hse": {"file_name": "http://x/a.npy"}}, "points outside its folder"),
        ({"hse": {"file_name": "hse/train.npy", "dataset": [1]}}, "'dataset' of 'hse' is .*expected a name"),
    ],
)
def test_descriptions_that_cannot_be_followed(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_patches(changed(tmp_path, **change))


def test_without_extents_all_are_unknown(tmp_path):
    split = read_patches(write_split(tmp_path, hse=None))
    assert np.isnan(split.hse).all() and len(split.hse) == 4


def test_tiles_and_patches_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"train.json: .* holds patches .*configs/so2sat"):
        read_coco(write_split(tmp_path))
    coco = tmp_path / "tiles.json"
    write_json({"images": [], "annotations": [], "categories": []}, coco)
    with pytest.raises(InputError, match=r"tiles.json: is no split of patches .*prepare_dataset.py so2sat"):
        read_patches(coco)


@pytest.mark.parametrize(
    ("optical", "sar", "message"),
    [
        (["B1"], [], "unknown band of patches 'B1'.*Known: B11, B12"),
        ([], ["HH"], "unknown band of patches 'HH'"),
        (["B2", "B2"], [], "a band is named twice in B2, B2"),
    ],
)
def test_bands_that_there_are_not(tmp_path, optical, sar, message):
    with pytest.raises(InputError, match=message):
        read_patches(write_split(tmp_path)).read(0, optical, sar)


def test_there_are_seventeen_zones_with_names_of_their_own():
    assert len(LCZ_CLASSES) == len({*LCZ_CLASSES}) == 17
    assert all("/" not in name for name in LCZ_CLASSES), "they are parts of the keys of scores"


# ---- Real pixels -------------------------------------------------------------------------------------------


def test_real_sentinel_pixels_arrive_as_reflectance_and_decibels(tmp_path, shared_data):
    """Of villages in fields: every band of both sensors, S1 beside S2 and not on it, as far as labels do not matter."""
    folder = shared_data("ssl4eo-ben-s1s2") / "SSL4EO-S12"
    optical = sorted((folder / "s2a/0000200").iterdir())[0]
    sar = sorted((folder / "s1/0000200").iterdir())[0]

    def pixels_of(path):
        with rasterio.open(path) as source:
            return source.read(1).astype(float)

    # 264 px of 10 m; bands of 20 m have 132, each of which stands for 2 x 2.
    read = [pixels_of(optical / f"{band}.tif") / 10_000 for band in OPTICAL_BANDS]
    sen2 = np.stack([band.repeat(264 // len(band), 0).repeat(264 // len(band), 1) for band in read], axis=-1)
    db = {band: pixels_of(sar / f"{band}.tif") for band in ("VH", "VV")}
    sen1 = np.zeros((264, 264, len(SAR_BANDS)))
    for band, values in db.items():
        sen1[..., SAR_BANDS.index(band)] = 10 ** (values / 10)

    def patches_of(image):
        cut = image[:256, :256].reshape(8, 32, 8, 32, -1).swapaxes(1, 2)
        return cut.reshape(64, 32, 32, -1)

    zones = [6] * 64
    path = write_split(tmp_path, classes=zones, hse=None, sen1=patches_of(sen1), sen2=patches_of(sen2))
    split = read_patches(path)
    image = split.read(9, OPTICAL_BANDS, ["VH", "VV"])
    # The tenth patch is the second of the second row of eight.
    part = np.s_[32:64, 32:64]
    np.testing.assert_allclose(image[:10], np.moveaxis(sen2[part], -1, 0), rtol=1e-6)
    np.testing.assert_allclose(image[10:], [db["VH"][part], db["VV"][part]], atol=1e-3)
    mean, std = split.statistics(OPTICAL_BANDS, ["VH", "VV"])
    assert ((mean[:10] > 0.02) & (mean[:10] < 0.6)).all() and (std > 0).all()
    assert -30 < mean[10] < mean[11] < 0, "cross-polarised echoes are weaker"
    assert mean[OPTICAL_BANDS.index("B8")] > mean[OPTICAL_BANDS.index("B4")], (
        "fields are bright in the near infrared"
    )


@pytest.mark.parametrize("block", range(4))
def test_a_damaged_file_is_read_or_refused_by_its_name(tmp_path, block):
    """Bytes of the file's structure are overwritten, or its end is missing."""
    path = write_split(tmp_path)
    file = tmp_path / "hdf5" / "train.h5"
    whole, rng = file.read_bytes(), np.random.default_rng(block)
    structure = [i for i in range(0, len(whole)) if i < 3000 or i > len(whole) - 3000]
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for i in rng.choice(structure, rng.integers(1, 40)):
            damaged[i] = rng.integers(0, 256)
        file.write_bytes(damaged[: rng.integers(0, len(whole))] if rng.random() < 0.2 else damaged)
        try:
            patches = read_patches(path)
            patches.read(1, sar=SAR_BANDS)
            patches.chunk_notes()
            patches.close()
        except InputError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 10
