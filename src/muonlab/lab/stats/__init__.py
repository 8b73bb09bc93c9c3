"""Statistics of runs. Lower is better throughout; no torch.

samples      one set of runs: summary, test against a target, bootstrap check, sliding windows
comparison   an arm against the baseline: Welch, pairs, equivalence, several arms, the verdict in words
power        how many runs a difference needs
times        steps (tokens, seconds) to a target, where some runs never reach it
sequential   tests that hold although one looks after every run
"""

from muonlab.lab.stats.comparison import (
    Comparison,
    Pairing,
    Verdict,
    benjamini_hochberg,
    compare,
    decide,
    decimals,
    dunnett,
    holm,
    judge,
    p_text,
    paired,
)
from muonlab.lab.stats.power import need, runs_needed
from muonlab.lab.stats.samples import OneSample, Summary, Windows, one_sample, summarize, windows
from muonlab.lab.stats.sequential import (
    confidence_sequence,
    decide_now,
    e_value,
    mean_sequence,
    reached_now,
    sequential_p,
    target_e_value,
    target_p,
    words,
)
from muonlab.lab.stats.times import (
    Rate,
    Ratio,
    Times,
    TimeSummary,
    exchange_rate,
    log_rank,
    median_with_misses,
    steps_ratio,
    time_to_target,
)

__all__ = [
    "Comparison",
    "OneSample",
    "Pairing",
    "Rate",
    "Ratio",
    "Summary",
    "TimeSummary",
    "Times",
    "Verdict",
    "Windows",
    "benjamini_hochberg",
    "compare",
    "confidence_sequence",
    "decide",
    "decide_now",
    "decimals",
    "dunnett",
    "e_value",
    "exchange_rate",
    "holm",
    "judge",
    "log_rank",
    "mean_sequence",
    "median_with_misses",
    "need",
    "one_sample",
    "p_text",
    "paired",
    "reached_now",
    "runs_needed",
    "sequential_p",
    "steps_ratio",
    "summarize",
    "target_e_value",
    "target_p",
    "time_to_target",
    "windows",
    "words",
]
