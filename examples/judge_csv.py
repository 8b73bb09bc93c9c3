"""Final losses in a CSV, one row a run, whoever trained them: which arm is better than the baseline?

pip install "muonlab[lab]", then: python examples/judge_csv.py [FILE.csv [BASELINE]]
The same with more to say: muonlab stats FILE.csv --by arm --baseline BASELINE
"""

import csv
import io
import sys
from collections import defaultdict
from pathlib import Path

from muonlab.lab import stats

FILE = """arm,seed,val_loss
adamw,1,2.1554
adamw,2,2.1278
adamw,3,2.1516
adamw,4,2.1402
muon,1,1.8782
muon,2,1.8956
muon,3,1.8797
muon,4,1.8840
muon twice,1,1.8811
muon twice,2,1.8979
muon twice,3,1.8770
muon twice,4,1.8865
"""

text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else FILE
arms = defaultdict(list)
for row in csv.DictReader(io.StringIO(text)):
    arms[row["arm"]].append(float(row["val_loss"]))
baseline = sys.argv[2] if len(sys.argv) > 2 else next(iter(arms))

compared = {arm: stats.compare(losses, arms[baseline]) for arm, losses in arms.items() if arm != baseline}
for arm, verdict in stats.judge(compared, alpha=0.05, margin=None).items():  # adjusted: two claims, not one
    print(f"{arm} against {baseline}: {verdict.word} ({verdict.reason})")

two = stats.compare(arms["muon twice"], arms["muon"], margin=0.05) if "muon twice" in arms else None
if two is not None:  # a small difference is no proof of none: ask for a margin
    print("muon twice against muon:", stats.judge({"muon twice": two}, alpha=0.05, margin=0.05)["muon twice"].word)
    print("a difference of 0.01:", stats.need(-0.01, 0.012))
