"""A method's whole study in its small form, done once for its tests."""

import importlib

import pytest

from selfimprove.studies import Claim, Lab, Result


class SmallerLab(Lab):
    """A lab whose runs have `more` overrides, so that the small form of a study is smaller still."""

    more: tuple[str, ...] = ()

    def run(self, *overrides: str) -> Result:
        return super().run(*overrides, *self.more, "verify.workers=1")


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Claim], Lab]:
    """The claims of the study that the test module is named after, and the lab they were measured in; with the
    overrides SMALLER of the module."""
    name = request.module.__name__.rpartition("test_")[2]
    lab = SmallerLab(True, tmp_path_factory.mktemp("study"), lambda said: None)
    lab.more = request.module.SMALLER
    return list(importlib.import_module(f"selfimprove.studies.{name}").study(lab)), lab
