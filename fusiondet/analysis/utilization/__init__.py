"""How much a network uses each of its two sensors, measured on its predictions, without retraining.

*Conditional utilisation* (P3) is defined for networks with one head per branch that exchange features. The optical
branch predicts p_opt as trained and p'_opt with all that it hears of SAR replaced by its mean over the training set
(`fusiondet.modeling.fusion.cut_off`). With a score A and the truth y

    u(sar|opt) = (A(y, p_opt) - A(y, p'_opt)) / A(y, p_opt)        u(opt|sar) likewise, of the SAR branch
    d_util     = u(sar|opt) - u(opt|sar)

A u is not defined where A(y, p_opt) is 0, and negative where the branch does better without the other sensor. Without
an exchange nothing is heard, so u is 0 by construction and is not reported.

*Drop sensitivity* is what any network of two modalities has: the score that is lost when the pixels of one modality
are replaced by

    mean         the band's mean over the training data (0 after normalisation); pixels without data stay without
    stand_in     no data at all, for which the network puts its stand-in (learned with MODALITY_DROPOUT, else 0)
    other_tile   those of another tile of the data set, one and the same for every run with that seed

Both are relative to one network and one data set. Intervals are 95 % percentiles over tiles drawn with replacement, the
same tiles for every prediction of a draw.

`utilization.json` is flat; SCORE is segm/AP50, joint/AP50, pixel/best_f1 (pixel F1 at the score
limit that is best for each prediction) or height/delta1; of a network that says maps alone dense/dice (pixel F1 of the
map from p = 0.5 on, A in P3) and, where it says heights, dense/delta1_building and dense/delta1_all; MODALITY is
optical or sar; null means not defined:

    score/as_is/SCORE                           of the network on the data as they are
    score/MODALITY/{mean,stand_in,other_tile}/SCORE         with that modality replaced
    score/MODALITY_branch/SCORE, score/MODALITY_branch_cut_off/SCORE        p_opt and p'_opt, or p_sar and p'_sar
    drop_sensitivity/MODALITY/{mean,stand_in,other_tile}/SCORE       score/as_is/SCORE minus that
    utilization/{u_sar_given_opt,u_opt_given_sar,d_util}/SCORE
    .../low, .../high                           interval of each drop_sensitivity and utilization
    n_tiles, n_calibration_tiles, draws, seed, weights, dataset, calibration, notes

    analysis.py  analyze: checkpoint and data set -> Utilization; the formulas, the replacements
    report.py    analyze_to_dir, text_table: as JSON, Markdown and picture
"""

from fusiondet.analysis.utilization.measurement import Estimate, Utilization, analyze
from fusiondet.analysis.utilization.summary import analyze_to_dir, markdown, text_table

__all__ = ["Estimate", "Utilization", "analyze", "analyze_to_dir", "markdown", "text_table"]
