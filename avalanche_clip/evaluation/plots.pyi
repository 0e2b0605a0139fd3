# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.evaluation.report.disorder_plots import (
    plot_angle_histograms as plot_angle_histograms,
    plot_disorder as plot_disorder,
)
from avalanche_clip.evaluation.report.plots import (
    Spread as Spread,
    plot_budget as plot_budget,
    plot_budget_curve as plot_budget_curve,
    plot_comparison as plot_comparison,
    plot_matrix as plot_matrix,
    plot_over_time as plot_over_time,
    save_figure as save_figure,
)
