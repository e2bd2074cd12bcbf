"""Run Detectron2, compiled or not, v0.5 or upstream's main branch, on a current stack. Import this before detectron2.

Importing this module applies what is missing, and nothing else: v0.5 (of 2021) needs every entry of `_SHIMS`,
upstream's main branch at most the last. `applied` names those that were needed. Checked with torch 2.15, numpy 2.4,
Pillow 13, setuptools 84, pycocotools 2.0.11 on Python 3.11. A later Detectron2 goes first on PYTHONPATH.

Not to be had without compiling Detectron2: rotated boxes, deformable convolution; they raise NotImplementedError.

Raises on import:
    InputError: torch, torchvision or Detectron2 is not installed.
"""

import importlib.util
import os
import re
import socket
import sys
import types
import warnings

from fusiondet.errors import InputError

_HOW_TO_INSTALL = {
    "torch": "Run `make setup` in the fusiondet checkout, or `pip install torch torchvision`.",
    "torchvision": "Run `pip install torch torchvision` together, so that they fit.",
    "detectron2": "Run `python tools/install_detectron2.py` in the fusiondet checkout (one second, no compiler).",
}


def require_installed(*names: str) -> None:
    """Return if each of the packages can be found; nothing is imported.

    Raises:
        InputError: one sentence with the missing package, the Python that misses it and the command that installs it.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        # A folder of that name beside the script (a git clone, say) is found too, as a package without a file.
        if spec is None or spec.origin is None:
            how = _HOW_TO_INSTALL.get(name, f"Run `pip install {name}`.")
            raise InputError(f"{name} is not installed for {sys.executable}. {how}")


def _add_module(name: str, **attributes) -> None:
    module = types.ModuleType(name, "Stand-in by fusiondet.compat.")
    # Without a spec, importlib.util.find_spec(name) raises ValueError for whoever asks whether the module exists.
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def _numpy_aliases() -> bool:
    """Restore np.int and friends: masks, visualizer and data/build of v0.5 use what numpy 1.24 dropped."""
    import numpy as np

    missing = {
        k: v for k, v in {"bool": bool, "int": int, "float": float, "str": str}.items() if k not in vars(np)
    }
    for name, kind in missing.items():
        setattr(np, name, kind)
    return bool(missing)


def _pillow_linear() -> bool:
    """Restore Image.LINEAR, a default argument in v0.5's data/transforms/transform.py; Pillow 10 dropped it."""
    from PIL import Image

    if hasattr(Image, "LINEAR"):
        return False
    Image.LINEAR = Image.BILINEAR
    return True


def _scheduler_base() -> bool:
    """Make _LRScheduler the base class again: hooks.LRScheduler of v0.5 saves only what is an instance of it."""
    from torch.optim import lr_scheduler

    if lr_scheduler._LRScheduler is lr_scheduler.LRScheduler:
        return False
    lr_scheduler._LRScheduler = lr_scheduler.LRScheduler
    return True


def _caffe2() -> bool:
    """Let `detectron2.export` be imported: v0.5 asks for caffe2 first, which torch 1.13 dropped."""
    if importlib.util.find_spec("caffe2") is not None:
        return False
    _add_module("detectron2.export.api")
    return True


_COMPILED_OPS = """box_iou_rotated nms_rotated deform_conv_forward deform_conv_backward_input
    deform_conv_backward_filter modulated_deform_conv_forward modulated_deform_conv_backward
    roi_align_rotated_forward roi_align_rotated_backward""".split()


def _compiled_ops() -> bool:
    """Stand in for detectron2._C, which v0.5 imports at the top of modules that need little or nothing of it."""
    import detectron2

    if importlib.util.find_spec("detectron2._C") is not None:
        return False
    from pycocotools.cocoeval import COCOeval

    def not_compiled(*args, **kwargs):
        raise NotImplementedError(
            "this Detectron2 is not compiled: no rotated boxes, no deformable convolution."
        )

    _add_module(
        "detectron2._C",
        __file__=None,
        get_compiler_version=lambda: "not compiled",
        get_cuda_version=lambda: "not compiled",
        has_cuda=lambda: False,
        **dict.fromkeys(_COMPILED_OPS, not_compiled),
    )
    detectron2._C = sys.modules["detectron2._C"]
    _add_module("detectron2.evaluation.fast_eval_api", COCOeval_opt=COCOeval)
    return True


def _pkg_resources() -> bool:
    """Lend `detectron2.model_zoo` the one function it uses of pkg_resources, which setuptools 82 dropped.

    Only while it is imported: others that find a pkg_resources (pytest does) expect more of it.
    """
    if importlib.util.find_spec("pkg_resources") is not None:
        return False

    def resource_filename(package: str, name: str) -> str:
        folder = importlib.util.find_spec(package).submodule_search_locations[0]
        return os.path.join(folder, *name.split("/"))

    _add_module("pkg_resources", resource_filename=resource_filename)
    try:
        import detectron2.model_zoo  # noqa: F401
    finally:
        del sys.modules["pkg_resources"]
    return True


_SHIMS = {
    "numpy aliases": _numpy_aliases,
    "PIL.Image.LINEAR": _pillow_linear,
    "_LRScheduler": _scheduler_base,
    "caffe2": _caffe2,
    "detectron2._C": _compiled_ops,
    "pkg_resources": _pkg_resources,  # last: it imports much of detectron2
}
_ANY_VERSION = {"pkg_resources"}  # the others are needed by v0.5 alone


def _apply() -> tuple[str, ...]:
    require_installed("torch", "torchvision", "detectron2")
    # Every command would print these two, of every Detectron2, and only Detectron2 could act on them.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release", category=UserWarning)
    import detectron2  # loads nothing that a shim has to precede

    old = detectron2.__version__ == "0.5"
    return tuple(name for name, shim in _SHIMS.items() if (old or name in _ANY_VERSION) and shim())


applied = _apply()


def launch(
    main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url="auto", args=(), device="cuda"
):
    """`detectron2.engine.launch` that also runs without a GPU: then it starts that many gloo processes.

    Args:
        main_func: called as `main_func(*args)` in every process; must be importable (top level of a module).
        num_gpus_per_machine: GPUs, or processes where there is no GPU; 0 and 1 mean this process.
        num_machines, machine_rank: of a job on several machines.
        dist_url: where rank 0 listens; "auto" (one machine only) picks a free port.
        args: tuple of picklable arguments.
        device: "cpu" starts gloo processes although there are GPUs.

    Raises:
        InputError: "auto" with several machines, or more processes than GPUs; or as one of the processes raised it.
    """
    import torch

    world_size = num_gpus_per_machine * num_machines
    if world_size <= 1:
        return main_func(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise InputError(
                '`dist_url="auto"` works on one machine; with several, pass tcp://HOST:PORT of rank 0.'
            )
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus and num_gpus_per_machine > torch.cuda.device_count():
        raise InputError(
            f"`num_gpus_per_machine={num_gpus_per_machine}`: this machine has {torch.cuda.device_count()}."
        )
    job = (main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url)
    try:
        if not on_gpus:
            torch.multiprocessing.spawn(_cpu_worker, nprocs=num_gpus_per_machine, args=(*job, args))
        else:
            from detectron2.engine import launch as launch_on_gpus

            launch_on_gpus(*job, args=args)
    except torch.multiprocessing.ProcessRaisedException as error:
        # All that is left of the exception is its traceback as text.
        found = re.search(
            r"^fusiondet\.errors\.InputError: (.+)", str(error).rstrip(), re.MULTILINE | re.DOTALL
        )
        if found and "Traceback" not in found[1]:
            raise InputError(found[1]) from None
        raise
    except BaseException:
        _end_children()  # else the interpreter would wait for them at its end, and they for each other
        raise


def _end_children(patience_s: float = 5.0) -> None:
    """End the processes that this one started, at the latest after `patience_s`; their own children notice."""
    import multiprocessing
    import time

    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + patience_s
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()
            child.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _cpu_worker(local_rank, main_func, workers, machines, machine_rank, dist_url, args):
    import torch
    import torch.distributed as dist

    # Each process would take every core, and they would wait for each other.
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    rank = machine_rank * workers + local_rank
    dist.init_process_group("gloo", init_method=dist_url, world_size=workers * machines, rank=rank)
    _set_local_group(workers, machines, machine_rank)
    _allow_ddp_on_cpu()
    try:
        main_func(*args)
    finally:
        dist.destroy_process_group()


def _set_local_group(workers: int, machines: int, machine_rank: int) -> None:
    import torch.distributed as dist
    from detectron2.utils import comm

    for machine in range(machines):  # every rank takes part in making every group
        group = dist.new_group(list(range(machine * workers, (machine + 1) * workers)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group


def _allow_ddp_on_cpu() -> None:
    """Keep `create_ddp_model` from passing device_ids, which DistributedDataParallel refuses for a model on CPU."""
    from detectron2 import engine
    from detectron2.engine import defaults

    create = defaults.create_ddp_model

    def create_ddp_model(model, **kwargs):
        return create(model, **{**kwargs, "device_ids": None})

    defaults.create_ddp_model = engine.create_ddp_model = create_ddp_model
