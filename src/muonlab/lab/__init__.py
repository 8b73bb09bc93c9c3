"""Arms × seeds: run them, read them back, and say better, worse, equivalent or undecided, with the evidence.

asking     experiment (the file), grid, followups (refine, head to head), search (Optuna), disguise (arms that are the same)
running    runner (sweeps and races), race (who runs next, where each arm stands), pool (worker processes), probe (dry runs)
keeping    store (a sweep's folder), index (SQLite, can be rebuilt), audit (expected against found)
others'    logger (`muonlab.run`), importers, collection (runs without a plan), tables → arms → answers (`muonlab stats`)
judging    stats, effects (designs), targets (time to a loss), results (all figures of a report), records (certify, verify)
telling    report: findings (sentences), arm_tables, facts, curves, charts, render (pictures), export (CSV, Parquet), templates
"""

from muonlab.extras import need_lab

need_lab(__name__, "pydantic", "scipy", "statsmodels", "tomli_w")
