#!/usr/bin/env python3
"""Train or evaluate a network; arguments and habits of Detectron2's own train_net.py."""

from fusiondet.cli import run


def main():
    from fusiondet.compat import launch
    from fusiondet.converters.prepare import source_options
    from fusiondet.engine.launch import parse_arguments, prepare, work
    from fusiondet.visualization.training import FIGURES

    args = parse_arguments(others=source_options)
    cfg = prepare(args)
    launch(
        work,
        args.num_gpus,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=(cfg, args, FIGURES),
        device=cfg.MODEL.DEVICE,
    )


if __name__ == "__main__":
    run(main)
