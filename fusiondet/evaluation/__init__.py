"""Scores of buildings, as pure functions on arrays: an IoU matrix, scores and heights in; numbers out.

Every evaluation returns one flat dict with these keys; a number that is not defined (no truth, nothing matched) is
None: AP without any truth is None, while AP with truth and no prediction is 0.

    bbox/AP, bbox/AP50, bbox/AP75, segm/AP, segm/AP50, segm/AP75      0-100, COCO definition, maxDets of the dataset
    joint/AP, joint/AP50, joint/AP75     0-100; true positive = mask IoU >= t *and* max(p/g, g/p) < 1.25
    height/mae_m, rmse_m, bias_m, median_error_m, nmad_m, delta1, delta2, delta3     on buildings matched at IoU >= .5
    height/skill                         1 - MAE / MAE of the best constant (the truth's median over the same buildings)
    height/slope                         of the line through prediction against truth; 1 follows every metre, 0 none
    height/coverage                      matched with known height / truth with known height
    height/n                             matched buildings with known height
    height/interval_coverage             share of truth inside [p16, p84]; 0.68 is honest
    height/crps_m                        metres; log-normal through the median with p84 / p16 as predicted
    height/crps_constant_width_m         the same medians with one p84 - p16 for all, chosen best on this very truth
    height/crps_constant_ratio_m         the same with one p84 / p16 for all: what errors in proportion to height give
    height/bin_<a>_<b>_m/{n,mae_m,bias_m}                by true height: 0-3, 3-6, 6-12, 12-24, 24-50, 50-inf
    height/width_q<k>/{n,mae_m,width_m}                  by quartile of the predicted p84 - p16
    height_gt_boxes/...                  the same as height/ with ground-truth boxes and masks given to the height head
    dataset/n_images, dataset/n_buildings, dataset/n_predictions, dataset/max_detections
    match/n, n_truth, n_predictions, precision, recall, f1, mean_iou, iou_threshold      one-to-one, layer against layer
    pixel/f1, precision, recall          of the union of masks, over predictions with a score of at least 0.5
    pixel/best_f1                        the largest pixel/f1 that a score of .05, .10, ... .95 as the limit gives
    match/f1, match/precision, match/recall, match/n_truth      `resampling`: the same predictions, one-to-one at IoU .5
    match/best_f1                        the largest match/f1 that any score as the limit gives

    dense/...      of maps, per pixel: the network's dense heads, or where it has none its painted instances
    painted/...    the same of the instances from a score of 0.5 on, painted; beside dense heads
      dice, iou, accuracy, precision, recall, f1       of the footprint, all pixels pooled; dice and f1 are the same
      dice_tile_mean, ...                              mean over tiles; those where it is not defined are left out
      mae_m_building, rmse_m_building, mse_m2_building, delta1_building, delta2_building, delta3_building
                                                       over true building pixels of known height; 0 is wrong there
      skill                                            1 - RMSE / RMSE of the best constant (the truth's mean), over
                                                       those building pixels; below 0: worse than one height for all;
                                                       left out where the truth is of one height
      mae_m_all, ..., delta3_all                       over all pixels of known truth; delta is right where truth and
                                                       prediction are both below 1 m, too
      mae_norm_building, rmse_norm_..., mse_norm_..., mae_norm_all, ...       of heights divided by normalizer_m
      normalizer_m                                     greatest true height of the tiles, unless another was asked for

    hse/mae, rmse, bias, r2, n           of the human settlement extent of patches, a share in [0, 1]; r2 is None where
                                       all truth is equal; n patches whose truth is known
    lcz/...        of the classes of patches
    classes/...    of the classes of pixels: those of the data set's rasters, else background and building
      oa, aa, kappa                    overall accuracy; average (producer's) accuracy over true classes; Cohen's kappa
      f1/<class>, iou/<class>          None for a class that is neither true nor predicted
      mean_f1, miou                    means over classes that have one
      n                                patches (pixels) whose class is known

    dfc2023/...    Track 2 of DFC2023 as the contest's scorer computes it, oddities included; all of it in [0, 1]
      score                            (ap50 + delta1) / 2
      ap50, map                        instances, IoU .5 with 1000 per tile, IoU .50:.95 with 100; rounded to three
                                       decimals; -1 without any building
      delta1, delta2, delta3, mae_m, mse_m2, rmse_m    of all pixels of submitted tiles, means over those tiles
      labelled_mae, labelled_mse, labelled_rmse        what the scorer calls so: they are RMSE, MAE and MSE
      background_share                 pixels whose true height is 0 or less: what a map of zeros has as delta1
      delta1_background                the part of delta1 that such pixels are
      n_images, n_buildings, n_instances, n_tiles_scored
      found_<kind>                     what is wrong with the submission: FINDINGS of dfc2023_submission
    dfc2023_strict/...                 the same question asked of buildings: all tiles, a missing one wrong everywhere
      score, ap50                      as above, not rounded; None without any building
      delta1, delta2, delta3, mae_m, rmse_m            pixels in annotated outlines with a true height above 0, pooled
      n_tiles, n_building_pixels
    spacenet/f1, precision, recall, tp, fp, fn         pooled over tiles, IoU > .5 of polygons, by the SpaceNet rules
    spacenet/min_area_px, score_threshold              smallest outline, px²; instances from this score on are proposals

`resampling` computes a part of these from counts per tile, for regions of tiles (under cloud, in the clear), and draws
tiles again for the intervals of scores and of differences.
`instances` scores COCO results against annotations, `dense` maps, `classes` and `regression` classes and numbers,
`vectors` one GIS layer against another; `dfc2023` and `spacenet` score by the rules of those contests.
"""

_ERRORS = ("mae_", "mse_", "rmse_", "nmad_", "crps_")


def is_error(key: str) -> bool:
    """Whether less of the score `key` is better."""
    name = key.rpartition("/")[2]
    return name.startswith(_ERRORS) or name in ("mae", "rmse")
