"""Detectron2 runs on the current stack: with all shims on v0.5, with next to none on upstream's main branch."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from fusiondet import compat
from fusiondet.errors import InputError
from tests.support.processes import alive_in_session, start_program, wait_for

import detectron2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils import comm

ROOT = Path(__file__).resolve().parents[1]
only_v05 = pytest.mark.skipif(detectron2.__version__ != "0.5", reason="needed by Detectron2 v0.5 alone")


def test_upstream_main_needs_at_most_one_shim():
    allowed = compat._SHIMS if detectron2.__version__ == "0.5" else ["pkg_resources"]
    assert set(compat.applied) <= set(allowed)


def test_model_zoo_is_found():
    from detectron2 import model_zoo

    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no_such.yaml")


@only_v05
def test_model_zoo_configs_are_installed():
    from detectron2 import model_zoo

    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    assert cfg.MODEL.RESNETS.DEPTH == 50


def test_masks_work_on_this_numpy():
    square = [np.array([1.0, 1, 5, 1, 5, 5, 1, 5])]
    masks = PolygonMasks([square, square])
    assert masks.nonempty().tolist() == [True, True]
    assert BitMasks.from_polygon_masks(masks, 8, 8).tensor.sum(dim=(1, 2)).tolist() == [16, 16]


def test_what_v05_imports_of_old_libraries_can_be_imported():
    for name in ("export", "data.transforms", "evaluation", "layers", "projects.point_rend"):
        importlib.import_module(f"detectron2.{name}")


@only_v05
def test_scheduler_made_by_torch_counts_as_one():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert isinstance(scheduler, torch.optim.lr_scheduler._LRScheduler)


@pytest.mark.skipif("detectron2._C" not in compat.applied, reason="this Detectron2 needs no stand-in")
def test_operations_that_need_a_compiler_say_so():
    from detectron2 import _C

    with pytest.raises(NotImplementedError, match="not compiled"):
        _C.nms_rotated()


@pytest.mark.skipif("detectron2._C" not in compat.applied, reason="this Detectron2 needs no stand-in")
def test_stand_ins_can_be_looked_up():
    assert importlib.util.find_spec("detectron2._C").name == "detectron2._C"


@pytest.mark.skipif("pkg_resources" not in compat.applied, reason="setuptools still has it")
def test_pkg_resources_is_lent_to_detectron2_alone():
    assert "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None


def test_importing_detectron2_prints_nothing():
    code = "import fusiondet.compat, detectron2.modeling"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# ---- What is not installed


@pytest.mark.parametrize("name", ["torch", "torchvision", "detectron2"])
def test_missing_package_gives_one_sentence_that_says_what_to_run(name):
    code = f"import sys; sys.modules[{name!r}] = None\nimport fusiondet.compat"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith(
        f"fusiondet.errors.InputError: {name} is not installed for {sys.executable}. Run `"
    )
    assert {"detectron2": "install_detectron2.py", "torch": "make setup", "torchvision": "together"}[
        name
    ] in last


def test_tool_without_detectron2_prints_that_sentence_alone():
    code = (
        "import runpy, sys; sys.modules['detectron2'] = None; sys.argv = ['train_net.py']; "
        f"runpy.run_path({str(ROOT / 'tools' / 'train_net.py')!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: detectron2 is not installed")


def test_folder_of_that_name_is_not_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "some_clone").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="some_clone is not installed .* `pip install some_clone`"):
        compat.require_installed("some_clone")


# ---- Several processes


class _Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0]))

    def forward(self, x):
        return {"loss": (self.weight * x).square().sum()}


def _average_gradients(folder: str) -> None:
    from detectron2.engine import defaults

    rank = comm.get_rank()
    model = defaults.create_ddp_model(_Linear(), broadcast_buffers=False)
    model(torch.tensor([float(1 + rank)]))["loss"].backward()
    numbers = [rank, comm.get_local_rank(), comm.get_world_size(), model.module.weight.grad.item()]
    torch.save(torch.tensor(numbers), f"{folder}/{rank}.pth")


def test_two_cpu_processes_average_their_gradients(tmp_path):
    compat.launch(_average_gradients, 2, args=(str(tmp_path),), device="cpu")
    # d(w x)²/dw at w = 1 is 2 x²: 2 on rank 0, 8 on rank 1.
    assert torch.load(tmp_path / "0.pth").tolist() == [0, 0, 2, 5]
    assert torch.load(tmp_path / "1.pth").tolist() == [1, 1, 2, 5]


@pytest.mark.parametrize("processes", [0, 1])
def test_one_process_is_this_one(processes):
    seen = []
    compat.launch(seen.append, processes, args=("here",))
    assert seen == ["here"]


def test_several_machines_need_an_address():
    with pytest.raises(InputError, match="tcp://HOST:PORT"):
        compat.launch(print, 1, num_machines=2, dist_url="auto")


def test_an_interrupt_of_the_parent_alone_ends_all_processes(tmp_path):
    code = "import sys; from fusiondet.compat import launch; from tests.support.processes import show_and_sleep; "
    # Processes are spawned, which imports this program again.
    code += "__name__ == '__main__' and launch(show_and_sleep, 2, args=(sys.argv[1],), device='cpu')"
    program = start_program(code, tmp_path)
    wait_for(lambda: len([*tmp_path.iterdir()]) == 2, 120, "the start of both")
    os.kill(program.pid, signal.SIGINT)
    program.communicate(timeout=30)
    assert program.returncode != 0
    wait_for(lambda: not alive_in_session(program.pid), 20, "the end of all its processes")
