#!/usr/bin/env bash
# SciPy 1.17.1: the p of `permutation_test` depends on the unit when the observed statistic is 0 up to rounding. Accuracies
# over rotations of three or ten options are thirds or tenths, which floats do not hold, so flips of signs that sum to 0 give
# ±1e-17 or so. SciPy counts flips that tie within a tolerance, but the tolerance is a share of the observed statistic, so
# here it is nothing, and about half of the ties count as smaller. The p can come out too small by a third.
#
# Seen (Python 3.11, Linux x86-64): one-sided sign-flip test of eight paired gains that sum to 0; 154 of 256 flips are >= 0
#   whole numbers: p = 0.6016
#   the same in thirds: p = 0.4102
#   the same in tenths: p = 0.4492
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/packages" scipy==1.17.1 numpy==2.4.6
PYTHONPATH="$folder/packages" python3 - <<'PY' | tee "$folder/seen"
import numpy as np
from scipy.stats import permutation_test

gains = np.array([1, -1, -1, -1, -2, 1, 2, 1])
for name, unit in (("whole numbers", 1.0), ("the same in thirds", 1 / 3), ("the same in tenths", 0.1)):
    found = permutation_test(
        (gains * unit,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    print(f"{name}: p = {found.pvalue:.4f}")
PY
diff "$folder/seen" - <<'SEEN'
whole numbers: p = 0.6016
the same in thirds: p = 0.4102
the same in tenths: p = 0.4492
SEEN
