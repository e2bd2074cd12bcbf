"""The numbers of an evaluation as a few lines of text."""

from fusiondet.evaluation.height_metrics import BIN_EDGES_M


def metrics_table(metrics: dict) -> str:
    """Readable lines for the flat dict of an evaluation; "-" where a number is not defined, absent groups left out."""
    lines = _average_precision(metrics) + _match(metrics)
    for prefix, title in (("height", "matched buildings"), ("height_gt_boxes", "true boxes and masks")):
        if f"{prefix}/n" in metrics:
            lines += _heights(metrics, prefix, title)
    for prefix in ("dense", "painted"):
        if f"{prefix}/dice" in metrics:
            lines += _maps(metrics, prefix)
    return "\n".join([*lines, *worse_than_constant(metrics)])


def worse_than_constant(metrics: dict) -> list[str]:
    """Return a note where predicted heights of `metrics` (flat) are worse than one and the same height for all."""
    below = [f"{key} {metrics[key]:.3f}" for key in _SKILLS if (metrics.get(key) or 0.0) < 0]
    if not below:
        return []
    return [
        f"note: heights are worse than one constant height for all buildings ({', '.join(below)}). Train longer, or "
        "check the height labels: their unit, and how far they are from the images."
    ]


_SKILLS = ("height/skill", "height_gt_boxes/skill", "dense/skill")


def _average_precision(metrics: dict) -> list[str]:
    kinds = [kind for kind in ("bbox", "segm", "joint") if f"{kind}/AP" in metrics]
    if not kinds:
        return []
    rows = [
        f"{kind:12}" + "".join(_text(metrics[f"{kind}/{name}"], "9.1f") for name in ("AP", "AP50", "AP75"))
        for kind in kinds
    ]
    return [f"{'':12}{'AP':>9}{'AP50':>9}{'AP75':>9}", *rows]


def _match(metrics: dict) -> list[str]:
    if "match/n" not in metrics:
        return []
    counts = (
        f"{metrics['match/n']} pairs of {metrics['match/n_truth']} true and "
        f"{metrics['match/n_predictions']} predicted features at IoU >= {metrics['match/iou_threshold']:g}"
    )
    shares = (f"{name} {_text(metrics[f'match/{name}'], '.3f')}" for name in ("precision", "recall", "f1"))
    if metrics.get("match/polis_m") is not None:
        shares = [*shares, f"PoLiS {metrics['match/polis_m']:.3f} m"]
    return [counts, ", ".join(shares)]


def _heights(metrics: dict, prefix: str, title: str) -> list[str]:
    def value(name: str, spec: str = ".3f") -> str:
        return _text(metrics[f"{prefix}/{name}"], spec)

    lines = [
        f"heights of {title}: n {metrics[f'{prefix}/n']}, {value('coverage')} of those with a known height",
        f"  MAE {value('mae_m')} m, RMSE {value('rmse_m')} m, bias {value('bias_m')} m, "
        f"median error {value('median_error_m')} m, NMAD {value('nmad_m')} m",
        f"  delta1 {value('delta1')}, delta2 {value('delta2')}, delta3 {value('delta3')}, skill {value('skill')}",
    ]
    if metrics[f"{prefix}/crps_m"] is not None:
        lines.append(
            f"  interval p16-p84 covers {value('interval_coverage')}; CRPS {value('crps_m')} m "
            f"(one width for all {value('crps_constant_width_m')} m, one ratio {value('crps_constant_ratio_m')} m)"
        )
    lines.append(f"  {'true height':>12}{'n':>8}{'MAE m':>9}{'bias m':>9}")
    for low, high in zip(BIN_EDGES_M, BIN_EDGES_M[1:], strict=False):
        name = f"bin_{low:g}_{high:g}_m"
        if metrics[f"{prefix}/{name}/n"]:
            numbers = (
                value(f"{name}/n", "8d") + value(f"{name}/mae_m", "9.3f") + value(f"{name}/bias_m", "9.3f")
            )
            lines.append(f"  {f'{low:g}-{high:g} m':>12}{numbers}")
    if metrics[f"{prefix}/crps_m"] is not None:
        widths = (
            f"{value(f'width_q{k}/width_m', '.2f')} m wide: MAE {value(f'width_q{k}/mae_m')}"
            for k in (1, 2, 3, 4)
        )
        lines.append("  by predicted width, narrowest quarter first: " + "; ".join(widths))
    return lines


def _maps(metrics: dict, prefix: str) -> list[str]:
    def values(names: tuple[str, ...], ending: str, spec: str = "10.3f") -> str:
        return "".join(_text(metrics[f"{prefix}/{name}{ending}"], spec) for name in names)

    footprint = ("dice", "iou", "accuracy", "precision", "recall")
    height = ("mae_m", "rmse_m", "delta1", "delta2", "delta3", "mae_norm")
    return [
        f"maps, {prefix}/, per pixel; heights / {values(('normalizer_m',), '', '.2f')} m are normalised",
        f"  {'footprint':20}" + "".join(f"{name:>10}" for name in footprint),
        *(
            f"  {title:20}{values(footprint, end)}"
            for title, end in (("pooled", ""), ("mean over tiles", "_tile_mean"))
        ),
        f"  {'height':20}" + "".join(f"{name:>10}" for name in ("MAE m", "RMSE m", *height[2:])),
        f"  {'on buildings':20}{values(height, '_building')}",
        f"  {'on all pixels':20}{values(height, '_all')}",
        f"  skill {_text(metrics.get(f'{prefix}/skill'), '.3f')} (1 - RMSE / RMSE of one height for all)",
    ]


def _text(value, spec: str) -> str:
    width = int("".join(c for c in spec.partition(".")[0] if c.isdigit()) or 0)
    return "-".rjust(width) if value is None else format(value, spec)
