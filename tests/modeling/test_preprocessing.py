"""Batches: bands, padding, hidden modalities, sensor metadata."""

import fusiondet.compat  # noqa: F401
from fusiondet.errors import InputError
from fusiondet.modeling.preprocessing import Preprocessing, sensor_rows
from fusiondet.modeling.sensor_geometry import SENSOR_FIELDS

import pytest
import torch

NAN = float("nan")


SENSOR = {
    "sun_elevation_deg": 45.0,
    "sun_azimuth_deg": 150.0,
    "sar_incidence_deg": 35.0,
    "sar_look_azimuth_deg": 80.0,
}


def test_statistics_are_asked_for():
    with pytest.raises(InputError, match="PIXEL_MEAN has 0 and MODEL.PIXEL_STD 1 numbers"):
        Preprocessing(pixel_mean=[], pixel_std=[1.0])


def test_an_image_with_other_bands_is_refused_by_name():
    with pytest.raises(InputError, match="a.tif: 4 bands, but the network takes 3"):
        preprocessing()([{"image": torch.zeros(4, 8, 8), "file_name": "a.tif"}], 1)


def test_sensor_rows_hold_what_is_known():
    rows = sensor_rows(
        [{"gsd_m": 0.5, "sensor": {"sun_elevation_deg": 45.0, "sar_incidence_deg": None}}, {}], "cpu"
    )
    assert rows.shape == (2, len(SENSOR_FIELDS))
    assert rows[0, 0] == 0.5 and rows[0, 2] == 45.0 and rows[0, 4].isnan() and rows[1].isnan().all()


def test_angles_of_a_modality_without_a_pixel_are_unknown(small_cfg, make_input):
    inputs = [make_input(1) | {"sensor": SENSOR} for _ in range(2)]
    inputs[1]["image"][3:] = NAN
    prepare = Preprocessing.from_config(small_cfg).eval()
    sar, sun = SENSOR_FIELDS.index("sar_incidence_deg"), SENSOR_FIELDS.index("sun_elevation_deg")
    sensor = prepare(inputs, 32).sensor
    assert sensor[0, sar] == 35 and sensor[1, sar].isnan() and sensor[:, sun].tolist() == [45, 45]
    prepare.disabled = "optical"
    sensor = prepare(inputs[:1], 32).sensor
    assert sensor[0, sun].isnan() and sensor[0, sar] == 35 and sensor[0, 0] == 0.5


def preprocessing(**options):
    """For two optical bands and a SAR band."""
    mean, std = [100.0, 50.0, -10.0], [50.0, 10.0, 5.0]
    return Preprocessing(pixel_mean=mean, pixel_std=std, optical_channels=2, **options)


def test_images_are_normalised_and_padding_has_no_data():
    images = preprocessing()([{"image": torch.full((3, 5, 9), 0.0)}, {"image": torch.zeros(3, 8, 3)}], 4)
    assert images.tensor.shape == (2, 3, 8, 12) and images.image_sizes == [(5, 9), (8, 3)]
    known = ~images.tensor.isnan()
    assert known[0, :, :5, :9].all() and known[1, :, :8, :3].all() and known.sum() == 3 * (45 + 24)
    assert images.tensor[0, :, 0, 0].tolist() == [-2, -5, 2]
    assert images.complete is images.tensor and images.sensor.isnan().all()


def test_a_batch_is_no_smaller_than_asked():
    images = preprocessing()([{"image": torch.zeros(3, 2, 70)}], 32, 64)
    assert images.tensor.shape == images.complete.shape == (1, 3, 64, 96)
    assert (~images.tensor.isnan()).sum() == 3 * 2 * 70


def test_dropout_hides_a_modality_in_training_alone_and_never_the_last_one():
    hide = preprocessing(modality_dropout={"optical": 0.0, "sar": 1.0})
    pair, sar_alone = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    sar_alone[:2] = NAN
    images = hide.train()([{"image": pair}, {"image": sar_alone}], 4)
    assert images.tensor[0, 2].isnan().all() and not images.tensor[0, :2].isnan().any()
    assert not images.tensor[1, 2].isnan().any() and not images.complete[0].isnan().any()
    assert not hide.eval()([{"image": pair}], 4).tensor.isnan().any()


def test_hiding_the_only_modality_is_refused():
    with pytest.raises(InputError, match="hides sar, but the network takes sar alone"):
        Preprocessing(pixel_mean=[0.0], pixel_std=[1.0], disabled="sar")


def test_some_images_of_a_batch():
    images = preprocessing()([{"image": torch.full((3, 4, n), float(n)), "gsd_m": n} for n in (2, 3, 4)], 4)
    part = images.take([2, 0])
    assert part.image_sizes == [(4, 4), (4, 2)] and part.sensor[:, 0].tolist() == [4, 2]
    assert torch.equal(part.tensor[0], images.tensor[2]) and torch.equal(part.complete[0], images.complete[2])


def test_nothing_of_it_is_in_a_checkpoint():
    assert not preprocessing().state_dict() and not list(preprocessing().parameters())
