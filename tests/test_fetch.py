"""scripts/fetch.py with real pip on a wheel made here, and, marked slow, with the real packages."""

import hashlib
import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.datasets import asdiv, openbookqa
from selfimprove.ready import check_gold

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch.py"


@pytest.fixture
def fetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part, content in (("one", b"first half, "), ("two", b"second half")):
        info = f"demo_{part}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"demo_{part}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"demo_{part}/data.bin", content)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: demo-{part}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def demo(fetch: ModuleType, sha256: str, last: str = "demo-two==1.0") -> None:
    parts = (("demo-one==1.0", "demo_one/data.bin"), (last, "demo_two/data.bin"))
    fetch.ASSETS["demo"] = fetch.Asset("datasets/demo", "data.bin", sha256, parts, "none")


WHOLE = hashlib.sha256(b"first half, second half").hexdigest()


def test_parts_are_joined_checked_and_kept_once(
    fetch: ModuleType, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(fetch, WHOLE)
    folder = fetch.fetch("demo", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "datasets" / "demo"
    assert (folder / "data.bin").read_bytes() == b"first half, second half"
    source = json.loads((folder / "SOURCE.json").read_text())
    assert source["packages"] == ["demo-one==1.0", "demo-two==1.0"]
    assert source["sha256"] == WHOLE
    assert [p.name for p in folder.parent.iterdir()] == ["demo"]  # nothing temporary is left

    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch.fetch("demo", tmp_path / "cache") == folder
    assert "already in" in capsys.readouterr().out


def test_another_file_than_expected_is_not_kept(fetch: ModuleType, index: Path, tmp_path: Path) -> None:
    demo(fetch, "0" * 64)
    with pytest.raises(SystemExit, match="SHA-256"):
        fetch.fetch("demo", tmp_path / "cache")
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_a_package_that_is_not_there(fetch: ModuleType, index: Path, tmp_path: Path) -> None:
    demo(fetch, WHOLE, last="demo-three==1.0")
    with pytest.raises(SystemExit, match=r"demo-three==1\.0: pip could not download it"):
        fetch.fetch("demo", tmp_path / "cache")
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_choice_questions_take_the_hub_s_schema(fetch: ModuleType, index: Path, tmp_path: Path) -> None:
    lines = [
        {
            "question": "A moth flies to",
            "options": "\nA. a lamp\nB. A. Smith's \nC. the sea",
            "answer": "B. A. Smith's",
        },
        {"question": "A whale swims in ", "options": "A. a lamp\nB. the sea", "answer": "B. the sea"},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with zipfile.ZipFile(index / "demo_one-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("demo_one/questions.jsonl", content)
    parts = (("demo-one==1.0", "demo_one/questions.jsonl"),)
    digest = hashlib.sha256(content).hexdigest()
    fetch.ASSETS["demo"] = fetch.Asset("demo", "test.jsonl", digest, parts, "none", row=fetch.openbookqa_row)
    folder = fetch.fetch("demo", tmp_path / "cache")
    assert [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()] == [
        {
            "question_stem": "A moth flies to",
            "choices": {"text": ["a lamp", "A. Smith's", "the sea"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
        {
            "question_stem": "A whale swims in",
            "choices": {"text": ["a lamp", "the sea"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ]
    problems = openbookqa.load(path=str(folder), prompt="{question}\n{options}", seed=0)
    assert {p.id: p.gold for p in problems} == {"openbookqa-test-1": "B", "openbookqa-test-2": "B"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "problems", "repeated"),
    [
        ("asdiv", 2084, 0),  # of 2,305: those with one number as the answer
        ("openbookqa", 500, 0),
        ("commonsenseqa", 1221, 6),  # questions whose gold option stands twice among the options
    ],
)
def test_every_gold_answer_of_the_real_data_passes_its_own_verifier(
    fetch: ModuleType, tmp_path: Path, name: str, problems: int, repeated: int
) -> None:
    path = fetch.fetch(name, tmp_path)
    sizes = ["dataset.train_size=null", "dataset.heldout_size=null", "verify.workers=1"]
    config = compose([f"dataset={name}", f"dataset.path={path}", *sizes], needs=False)
    found = bind(config.dataset.model_dump(by_alias=True), "dataset")(seed=0)
    assert len(found) == problems
    assert check_gold(config, found) == {}
    if name != "asdiv":
        assert {p.split for p in found} == {"test"}
        options = [(p.metadata["options"], p.metadata["options"]["ABCDE".index(p.gold)]) for p in found]
        assert sum(texts.count(gold) > 1 for texts, gold in options) == repeated


@pytest.mark.slow
def test_the_real_asdiv(fetch: ModuleType, tmp_path: Path) -> None:
    problems = asdiv.load(path=str(fetch.fetch("asdiv", tmp_path)), prompt="{question}", seed=0)
    first = next(p for p in problems if p.id == "asdiv-0001")
    assert first.gold == "9"


@pytest.mark.slow
def test_the_real_smollm2_is_a_chat_model_after_conversion(fetch: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch.fetch("smollm2_135m", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.tokenize("x  12 .") == ["x", "ĠĠ", "1", "2", "Ġ."]  # each digit by itself
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    chat = [{"role": "user", "content": "What is 2+3?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "2 + 3 = 5<|im_end|>"


@pytest.mark.slow
def test_the_real_gemma_has_its_own_tokens_after_conversion(fetch: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch.fetch("gemma3_270m", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Hello, world!").input_ids == [2, 9259, 236764, 1902, 236888]  # <bos> and four tokens, not letters
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
