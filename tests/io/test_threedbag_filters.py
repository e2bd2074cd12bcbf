"""Which of 3DBAG's buildings are kept as labels of an image, and why."""

from collections import Counter

from fusiondet.errors import InputError
from fusiondet.io import threedbag
from fusiondet.io.threedbag_filters import (
    CHECKS,
    Filters,
    Inspector,
    parse_filters,
)
from fusiondet.io.vectors import read_layer
from tests.support.messages import raises_naming
from tests.support.vector_cases import frame, houses

import pandas
import pytest

# Check -> (attributes that it applies to, attributes that it does not apply to).
EXAMPLES = {
    "later": [
        ({"oorspronkelijkbouwjaar": 2021}, {"oorspronkelijkbouwjaar": 2020}),
        ({"bouwjaar": "2021"}, {"bouwjaar": 9999}),
    ],
    "apart": [({"b3_pw_datum": 2014}, {"b3_pw_datum": 2018}), ({"pw_bron": "AHN2"}, {"pw_bron": "ahn3"})],
    "not-standing": [
        ({"status": "Pand gesloopt"}, {"status": "Pand in gebruik"}),
        ({"pandstatus": "Bouw gestart"}, {"pandstatus": "Sloopvergunning verleend"}),
    ],
    "outdated": [
        ({"b3_pw_selectie_reden": "_LATEST_BUT_OUTDATED"}, {"b3_pw_selectie_reden": "PREFERRED_AND_LATEST"}),
        ({"bouwjaar": 2020, "pw_datum": "2017-12-01"}, {"bouwjaar": 2017, "pw_datum": "2017-12-01"}),
        ({"bouwjaar": 2020, "pw_bron": "ahn3"}, {"bouwjaar": 2019, "pw_bron": "ahn3"}),
    ],
    "mutated": [
        ({"b3_mutatie_ahn3_ahn4": True}, {"b3_mutatie_ahn3_ahn4": False}),
        ({"b3_mutatie_ahn3_ahn4": False, "b3_mutatie_ahn4_ahn5": 1}, {"b3_mutatie_ahn3_ahn4": None}),
    ],
    "failed-roof": [
        ({"b3_dak_type": "no points"}, {"b3_dak_type": "slanted"}),
        ({"dak_type": -2.0}, {"dak_type": 2.0}),
        ({"b3_extrusie": "skip"}, {"b3_extrusie": "standard"}),
    ],
    "sparse": [
        ({"b3_pw_selectie_reden": "_HIGHEST_YET_INSUFFICIENT_COVERAGE"}, {"b3_pw_selectie_reden": None}),
        ({"b3_pw_onvoldoende": True}, {"b3_pw_onvoldoende": False}),
        (
            {"b3_pw_bron": "AHN4", "b3_nodata_fractie_ahn4": 0.6},
            {"b3_pw_bron": "AHN4", "b3_nodata_fractie_ahn3": 0.6, "b3_nodata_fractie_ahn4": 0.5},
        ),
    ],
    "greenhouse": [
        ({"b3_kas_warenhuis": True}, {"b3_kas_warenhuis": "false"}),
        ({"kas_warenh": 1}, {"kas_warenh": 0}),
    ],
    "simplified": [
        ({"b3_reconstructie_onvolledig": True}, {"b3_reconstructie_onvolledig": False}),
        ({"b3_extrusie": "lod11_fallback"}, {"b3_extrusie": 0}),
    ],
    "invalid": [
        ({"b3_val3dity_lod22": "[303,307]"}, {"b3_val3dity_lod22": "[]"}),
        ({"b3_val3dity_lod22": [104]}, {"b3_val3dity_lod22": []}),
    ],
}


class TestChecks:
    FILTERS = Filters(image_year=2020, max_years_apart=5)

    @pytest.mark.parametrize("check", CHECKS)
    def test_each_applies_to_what_it_is_about_only(self, check):
        # Without the years of an image where those are not what is tested.
        filters = self.FILTERS if check in ("later", "apart") else Filters()
        for guilty, innocent in EXAMPLES[check]:
            assert Inspector(guilty, Filters()).checks(guilty) == ([] if filters is self.FILTERS else [check])
            for attributes, expected in ((guilty, [check]), (innocent, [])):
                columns = [*attributes, "bouwjaar", "pw_datum"]  # an image's years need them
                assert Inspector(columns, filters).checks(attributes) == expected

    def test_unknown_is_innocent(self):
        columns = [name for names in threedbag.ATTRIBUTES.values() for name in names]
        inspector = Inspector(columns, self.FILTERS)
        assert inspector.checks({}) == [] == inspector.checks(dict.fromkeys(columns))
        assert inspector.checks(dict.fromkeys(columns, float("nan"))) == []
        assert inspector.checks(dict.fromkeys(columns, pandas.NaT)) == []

    def test_the_hardest_action_decides(self):
        inspector = Inspector(
            ["b3_kas_warenhuis", "b3_dak_type"], Filters({"failed-roof": "unknown", "greenhouse": "drop"})
        )
        assert inspector.verdict(["failed-roof", "greenhouse"]) == ("drop", "greenhouse")
        assert inspector.verdict(["failed-roof"]) == ("unknown", "failed-roof")
        assert inspector.verdict(["mutated"]) == inspector.verdict([]) == ("keep", None)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"actions": {"greenhouses": "drop"}}, "unknown filter 'greenhouses'. Did you mean 'greenhouse'"),
            ({"actions": {"greenhouse": "remove"}}, "action of the filter 'greenhouse' 'remove'"),
            ({"actions": {"later": "drop"}}, "give `image_year`"),
            ({"max_years_apart": 3}, "give `image_year`"),
            ({"actions": {"apart": "drop"}, "image_year": 2020}, "give `max_years_apart`"),
            ({"image_year": 20}, "expected a year"),
            ({"image_year": 2020, "max_years_apart": -1}, "expected 0 or more"),
            ({"max_empty_share": 1.5}, "from 0 to 1"),
        ],
    )
    def test_contradictions(self, arguments, message):
        with pytest.raises(InputError, match=message):
            Filters(**arguments)

    def test_text_of_filters(self):
        assert parse_filters(["greenhouse=drop", "sparse=unknown"]) == {
            "greenhouse": "drop",
            "sparse": "unknown",
        }
        for text, message in (("greenhouse", "NAME=ACTION"), ("=drop", "NAME=ACTION"), ("a=", "NAME=ACTION")):
            with pytest.raises(InputError, match=message):
                parse_filters([text])
        with raises_naming("'a'", "twice"):
            parse_filters(["a=drop", "a=keep"])


class TestFilteredLayer:
    def save(self, path):
        columns = {
            "b3_h_70p": [5.0, 6.0, 7.0, None],
            "b3_h_maaiveld": [0.0] * 4,
            "b3_kas_warenhuis": [False, True, False, False],
            "b3_pw_datum": [2020, 2020, 2014, 2014],
            "oorspronkelijkbouwjaar": [2025, 1990, 1990, 1990],
        }
        frame(houses(4), identificatie=list("abcd"), **columns).to_file(path)
        return path

    def test_without_filters_everything_stays_and_is_counted(self, tmp_path):
        layer = read_layer(self.save(tmp_path / "a.gpkg"))
        assert len(layer.buildings) == 4 and layer.counts == Counter()
        assert layer.checks == {"outdated": 1, "greenhouse": 1}

    def test_dropped_and_unknown_are_counted_by_reason(self, tmp_path):
        filters = Filters({"greenhouse": "drop"}, image_year=2021, max_years_apart=3)
        layer = read_layer(self.save(tmp_path / "a.gpkg"), filters=filters)
        assert [(b.id, b.height_m, b.height_source) for b in layer.buildings] == [
            ("c", None, None),
            ("d", None, None),
        ]
        assert layer.counts == {"dropped: later": 1, "dropped: greenhouse": 1, "height set unknown: apart": 1}
        assert layer.reasons == {"apart": 1, "missing": 1}
        assert layer.checks == {"later": 1, "outdated": 1, "greenhouse": 1, "apart": 2}

    def test_a_filter_without_its_columns_is_refused(self, tmp_path):
        path = self.save(tmp_path / "a.gpkg")
        with raises_naming("a.gpkg", "'mutated'", "b3_mutatie_ahn3_ahn4"):
            read_layer(path, filters=Filters({"mutated": "drop"}))
        with raises_naming("b3_pw_selectie_reden", "b3_pw_onvoldoende", "b3_pw_bron"):
            read_layer(path, filters=Filters({"sparse": "unknown"}))
        (tmp_path / "e.geojson").write_text('{"type": "FeatureCollection", "features": []}')
        assert read_layer(tmp_path / "e.geojson", filters=Filters({"mutated": "drop"})).buildings == []

    def test_limburg(self, shared_data):
        path = shared_data("3dbag-b3-limburg") / "limburg.city.json"
        found = {"sparse": 22, "invalid": 7, "greenhouse": 1, "simplified": 1, "outdated": 2}
        assert read_layer(path).checks == found
        layer = read_layer(path, filters=Filters({"sparse": "unknown"}, image_year=2016, max_years_apart=3))
        assert layer.counts["dropped: later"] == 82 and layer.checks["apart"] == 729  # AHN4 is of 2020
        assert len(layer.buildings) == 840 - 82
        assert sum(b.height_m is None for b in layer.buildings) == sum(layer.reasons.values())
