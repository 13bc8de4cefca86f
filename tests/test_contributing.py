"""The method that CONTRIBUTING.md shows is a whole one: it runs."""

import json
import re
from pathlib import Path

from tests.conftest import SMALL, TRAIN

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_the_documented_method_runs(cli, tmp_path):
    text = PAGE.read_text().replace("selfimprove.methods.shortest", "shortest")
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "shortest.py").write_text(python)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "shortest.yaml").write_text(yaml)
    run = tmp_path / "run"
    overrides = [
        "method=shortest",
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]",
        f"hydra.run.dir={run}",
        "rounds=1",
    ]
    cli("run", *SMALL, *overrides, PYTHONPATH=str(tmp_path))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert 0 < summary["rounds"][0]["examples"] <= TRAIN
