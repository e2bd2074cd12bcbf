"""The frozen presets of the synthetic city. A change to any number here needs a new version of that preset."""

from dataclasses import dataclass

from fusiondet.errors import unknown_name

Range = tuple[float, float]


@dataclass(frozen=True)
class Preset:
    """All that shapes a city and its pictures. Ranges are (low, high), drawn once per acquisition, uniformly.

    Attributes:
        name, version: written to every dataset made with it.
        layout: "isolated" (free-standing simple buildings) or "blocks" (streets, terraces, courtyards, parks).
        sun_azimuth_deg, sun_elevation_deg, sar_incidence_deg: ranges; conventions of `SensorGeometry`.
        sar_look_azimuth_deg: one range per orbit direction; an acquisition draws one of them.
        height_median_m, height_log_sigma: log-normal heights, cut to `height_range_m`.
        building_spacing_m: "isolated" only, side of the square in which one building stands on average.
        tilted_roof_share: buildings with gable or hip roofs where the layout allows both.
        rooftop_per_100_m2: boxes on flat roofs.
        tree_per_ha: mean number of trees on unbuilt ground per hectare.
        psf_fwhm_m: optical point spread. haze: share of the light that is haze. optical_noise: std, [0, 1] scale.
        sar_resolution_m: impulse response and spacing of independent speckle. sar_looks: looks per resolution cell.
        noise_floor_db: noise-equivalent sigma nought.
        roof_sigma0_db, ground_sigma0_spread_db: backscatter as (mean, std) per roof; std per ground class.
    """

    name: str
    version: int
    layout: str
    sun_azimuth_deg: Range
    sun_elevation_deg: Range
    sar_look_azimuth_deg: tuple[Range, ...]
    sar_incidence_deg: Range
    height_median_m: float
    height_log_sigma: float
    height_range_m: Range
    building_spacing_m: float
    tilted_roof_share: float
    rooftop_per_100_m2: float
    tree_per_ha: float
    psf_fwhm_m: float
    haze: Range
    optical_noise: Range
    sar_resolution_m: float
    sar_looks: float
    noise_floor_db: Range
    roof_sigma0_db: tuple[float, float]
    ground_sigma0_spread_db: float


PRESETS = {
    "easy": Preset(
        name="easy",
        version=1,
        layout="isolated",
        sun_azimuth_deg=(145.0, 155.0),
        sun_elevation_deg=(40.0, 50.0),
        sar_look_azimuth_deg=((85.0, 95.0),),
        sar_incidence_deg=(35.0, 45.0),
        height_median_m=9.5,
        height_log_sigma=0.6,
        height_range_m=(3.0, 45.0),
        building_spacing_m=29.0,
        tilted_roof_share=0.2,
        rooftop_per_100_m2=0.0,
        tree_per_ha=6.0,
        psf_fwhm_m=0.7,
        haze=(0.0, 0.05),
        optical_noise=(0.01, 0.02),
        sar_resolution_m=1.0,
        sar_looks=4.0,
        noise_floor_db=(-24.0, -22.0),
        roof_sigma0_db=(-8.0, 2.0),
        ground_sigma0_spread_db=1.0,
    ),
    "realistic": Preset(
        name="realistic",
        version=1,
        layout="blocks",
        sun_azimuth_deg=(120.0, 240.0),
        sun_elevation_deg=(35.0, 60.0),
        sar_look_azimuth_deg=((72.0, 92.0), (268.0, 288.0)),
        sar_incidence_deg=(30.0, 45.0),
        height_median_m=9.5,
        height_log_sigma=0.55,
        height_range_m=(3.0, 45.0),
        building_spacing_m=0.0,
        tilted_roof_share=0.5,
        rooftop_per_100_m2=0.8,
        tree_per_ha=40.0,
        psf_fwhm_m=0.9,
        haze=(0.03, 0.2),
        optical_noise=(0.01, 0.025),
        sar_resolution_m=1.0,
        sar_looks=2.0,
        noise_floor_db=(-22.0, -18.0),
        roof_sigma0_db=(-9.0, 3.5),
        ground_sigma0_spread_db=2.0,
    ),
}


def preset(name: str) -> Preset:
    """The preset called `name`; InputError with the known names otherwise."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
