# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.evaluation.report.comparison import (
    text_table as text_table,
    write_comparison as write_comparison,
)
from avalanche_clip.evaluation.report.page import (
    write_report as write_report,
)
