"""docs/demo.ipynb runs as it stands there, on few problems."""

import json
from pathlib import Path

import pytest

NOTEBOOK = json.loads((Path(__file__).parent.parent / "docs" / "demo.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = 'WORDS += ["rounds=1", "dataset.train_size=6", "dataset.heldout_size=4", "verify.workers=1"]'


def test_it_is_stored_without_output():
    assert NOTEBOOK["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in NOTEBOOK["cells"])


@pytest.mark.slow
def test_every_cell_runs_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time the run is there
        scope = {}
        for cell in [CELLS[0], SMALL, *CELLS[1:]]:
            exec(cell, scope)
        assert scope["summary"]["status"] == "complete"
        said = capsys.readouterr().out
        assert "base" in said
        assert "round 0" in said
        assert "correct" in said or "wrong" in said
