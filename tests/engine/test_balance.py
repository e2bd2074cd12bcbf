import math
from types import SimpleNamespace

from fusiondet.engine.balance import BalanceModalities
from fusiondet.engine.checkpoint import read_checkpoint
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.modeling.fusion import MODALITIES, exchanges
from tests.support.tiny_city import tiny_config, write_split

import pytest
import torch

DUAL = (
    *("MODEL.META_ARCHITECTURE", "LateFusionRCNN"),
    *("MODEL.BACKBONE.NAME", "build_two_pyramids_resnet_fpn_backbone"),
    *("MODEL.FUSION.EXCHANGE.res5", "MMTM", "DATASETS.TEST", "[]"),
)
BALANCED = (*DUAL, "MODEL.FUSION.BALANCE.WINDOW", "2", "MODEL.FUSION.BALANCE.TOLERANCE", "0.0")


@pytest.fixture
def trainer(tmp_path):
    write_split(tmp_path, "train", (3, 2))

    def make(*overrides):
        cfg = tiny_config(tmp_path, *BALANCED, *overrides, test="")
        complete_config(cfg)
        made = FusionTrainer(cfg)
        # As after some training: exchanges start by telling nothing.
        torch.manual_seed(1)
        for parameter in exchanges(made.model)["backbone.bottom_up.exchanges.res5"].parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        return made

    return make


def hook_of(trainer):
    return next(h for h in trainer._hooks if isinstance(h, BalanceModalities))


def gradients(hook, **factors):
    """Every gradient is its parameter times a factor, so that the speed of a part is the factor squared."""
    for key, parameters in hook._parameters.items():
        for p in parameters:
            p.grad = p.detach() * factors[key.replace("/", "_")]


@pytest.fixture
def hook(trainer):
    """A hook that has measured nothing yet, and a trainer that does nothing but count."""
    made = hook_of(trainer("SOLVER.WARMUP_ITERS", "0"))
    made.logged = []
    storage = SimpleNamespace(put_scalar=lambda name, value: made.logged.append((name, value)))
    made.trainer = SimpleNamespace(iter=0, storage=storage)
    # What both halves share would count for both; without it numbers can be checked by hand.
    for parameter in next(iter(exchanges(made.model).values())).joint.parameters():
        torch.nn.init.zeros_(parameter)
    made.means = {name: {m: torch.zeros(512) for m in MODALITIES} for name in made.means}
    return made


def test_speeds_and_their_difference_by_hand(hook):
    assert hook.d_speed() == 0
    gradients(hook, optical_own=1.0, optical_heard=3.0, sar_own=2.0, sar_heard=1.0)
    hook.after_step()
    assert hook.speeds == pytest.approx(
        {"optical/own": 1, "optical/heard": 9, "sar/own": 4, "sar/heard": 1}, rel=1e-4
    )
    assert hook.d_speed() == pytest.approx(math.log(9) - math.log(1 / 4), rel=1e-4)
    gradients(hook, optical_own=1.0, optical_heard=math.inf, sar_own=2.0, sar_heard=1.0)
    hook.after_step()
    assert math.isfinite(hook.d_speed()), "a step that overflowed was not taken"


def test_the_parts_of_a_branch(hook):
    names = {id(p): name.removeprefix("backbone.bottom_up.") for name, p in hook.model.named_parameters()}
    parts = {key: {names[id(p)] for p in parameters} for key, parameters in hook._parameters.items()}
    mmtm = {"exchanges.res5.joint.weight", "exchanges.res5.joint.bias"}
    assert parts["sar/heard"] == mmtm | {"exchanges.res5.sar.weight", "exchanges.res5.sar.bias"}
    assert parts["optical/heard"] == mmtm | {"exchanges.res5.optical.weight", "exchanges.res5.optical.bias"}
    assert all(name.startswith("optical.") for name in parts["optical/own"])


@pytest.mark.parametrize(("heard", "trained"), [(3.0, "optical"), (0.1, "sar")])
def test_the_branch_of_the_slower_modality_has_the_next_window(hook, heard, trained):
    """d > 0: the optical branch learns from what SAR tells rather than from its own pixels."""
    (other,) = {*MODALITIES} - {trained}
    seen = []
    for _ in range(7):
        hook.before_step()
        seen.append(
            (
                hook.model.task_weighting.branch_weights[other],
                hook.model.task_weighting.branch_weights[trained],
            )
        )
        cut = [op._replaced.keys() for op in exchanges(hook.model).values()]
        assert all(set(keys) == ({other} if seen[-1][0] == 0 else set()) for keys in cut)
        gradients(hook, optical_own=1.0, optical_heard=heard, sar_own=1.0, sar_heard=1.0)
        hook.after_step()
    assert seen == [(1, 1), (1, 1), (0, 1), (0, 1), (1, 1), (1, 1), (0, 1)]
    sign = {"optical": 1, "sar": -1}[trained]
    assert [v for name, v in hook.logged if name == "balance/trained"] == [0, 0, sign, sign, 0, 0, sign]


def test_within_the_tolerance_and_in_the_warm_up_both_are_trained(hook):
    hook.tolerance, hook.warmup = 3.0, 2
    for i in range(8):
        hook.trainer.iter = i
        hook.before_step()
        gradients(hook, optical_own=1.0, optical_heard=4.0, sar_own=1.0, sar_heard=1.0)
        hook.after_step()
    assert (
        hook.trained == ""
        and hook.regular_steps == 6
        and hook.d_speed() == pytest.approx(math.log(16), rel=1e-4)
    )


def test_in_a_window_nothing_of_the_other_branch_moves(trainer):
    made = trainer("SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0")
    hook, snapshots = hook_of(made), []
    decide = hook.after_step

    def after_step():
        snapshots.append({name: p.detach().clone() for name, p in made.model.named_parameters()})
        decide()

    hook.after_step = after_step
    made.train()
    assert [v for v, _ in made.storage.history("balance/trained").values()][:2] == [0, 0]
    trained = {1: "optical", -1: "sar"}[made.storage.history("balance/trained").values()[2][0]]
    (other,) = {*MODALITIES} - {trained}
    moved = {m: [] for m in MODALITIES}
    for name, after in snapshots[3].items():
        for m in {*name.split(".")} & {*MODALITIES}:
            moved[m].append(not torch.equal(snapshots[1][name], after))
    assert not any(moved[other]) and sum(moved[trained]) > 0.9 * len(moved[trained])
    assert made.model.task_weighting.branch_weights == {"optical": 1.0, "sar": 1.0}
    assert all(op._listener is None and not op._replaced for op in exchanges(made.model).values())


def test_a_step_that_fails_in_a_window_leaves_the_model_as_it_was(hook):
    hook.before_train()
    hook.trained, hook.steps_left = "optical", 2
    hook.before_step()
    assert hook.model.task_weighting.branch_weights["sar"] == 0
    hook.after_train()  # as the trainer calls it after an exception
    assert hook.model.task_weighting.branch_weights == {"optical": 1.0, "sar": 1.0}
    assert all(op._listener is None and not op._replaced for op in exchanges(hook.model).values())


def test_no_window_begins_before_the_other_modality_was_seen(hook):
    for means in hook.means.values():
        del means["sar"]
    for _ in range(4):
        hook.before_step()
        gradients(hook, optical_own=1.0, optical_heard=3.0, sar_own=1.0, sar_heard=1.0)
        hook.after_step()
    assert hook.d_speed() > 0 and hook.trained == "" and hook.regular_steps == 4


def test_all_processes_hear_the_same_mean(hook, monkeypatch):
    (name,) = hook.means
    hook.means[name] = {"optical": torch.full((512,), 1.0)}
    other = {name: {"optical": torch.full((512,), 3.0), "sar": torch.full((512,), 5.0)}}
    monkeypatch.setattr("fusiondet.engine.balance.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("fusiondet.engine.balance.comm.all_gather", lambda own: [own, other])
    hook.warmup = 1
    hook.after_step()
    assert {m: mean.unique().tolist() for m, mean in hook.means[name].items()} == {"optical": [2], "sar": [5]}


def test_a_resumed_run_goes_on_in_its_window(trainer, tmp_path):
    made = trainer("SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "3")
    made.train()
    state = read_checkpoint(tmp_path / "out" / "model_final.pth")["hooks"]["BalanceModalities"]
    assert state["steps_left"] == 1 and state["trained"] in MODALITIES
    again = trainer("SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0")
    again.resume_or_load(resume=True)
    assert hook_of(again).speeds == hook_of(made).speeds
    again.train()
    assert hook_of(again).steps_left == 0 and hook_of(again).trained == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.FUSION.EXCHANGE.res5", ""), "balancing needs two branches that tell each other"),
        (("MODEL.FUSION.SHARE_WEIGHTS", "True"), "SHARE_WEIGHTS no parameters are of one modality alone"),
    ],
)
def test_networks_that_cannot_be_balanced(tmp_path, overrides, message):
    write_split(tmp_path, "train", (3, 2))
    cfg = tiny_config(tmp_path, *BALANCED, *overrides, test="")
    complete_config(cfg)
    with pytest.raises(InputError, match=message):
        FusionTrainer(cfg)
