"""Makes selfimprove/datasets/digits.npz: the 1,797 digits of scikit-learn, as bytes.

    python scripts/make_digits.py FILE    # sklearn/datasets/data/digits.csv.gz of an installed scikit-learn

Alpaydin and Kaynak, UCI "Optical Recognition of Handwritten Digits", CC BY 4.0.
"""

from __future__ import annotations

import sys

import numpy as np

from selfimprove.datasets.pictures import DIGITS


def main(source: str) -> None:
    rows = np.loadtxt(source, delimiter=",").astype(np.uint8)
    np.savez_compressed(DIGITS, pictures=rows[:, :64].reshape(-1, 8, 8), classes=rows[:, 64])
    print(f"{len(rows)} pictures, {DIGITS.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
