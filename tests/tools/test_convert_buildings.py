"""A layer in another format, from the command line."""

import subprocess
import sys
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.io.layer_writer import write_buildings
from fusiondet.io.layers import read_buildings
from tests.support.messages import raises_naming

from shapely.geometry import box

ROOT = Path(__file__).resolve().parents[2]


def test_a_geopackage_becomes_a_city_model(tmp_path, capsys, load_tool):
    source, target = tmp_path / "city.gpkg", tmp_path / "city.city.json"
    write_buildings([Building(box(155_000, 463_000, 155_010, 463_010), 6.5, id=3)], "EPSG:28992", source)
    main = load_tool("convert_buildings").main
    main([str(source), str(target)])
    ((building,), crs) = read_buildings(target)
    assert (building.id, building.height_m, crs) == (3, 6.5, "EPSG:28992")
    assert f"wrote {target}" in capsys.readouterr().out
    with raises_naming("city.city.json", "overwrite"):
        main([str(source), str(target)])


def test_no_torch_is_needed():
    code = "import sys, fusiondet.io.layer_conversion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
