"""Training KaLM-Reranker from random init and on pairs: the training forward equals the scorer. Tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints
from mmrr.scorers import kalm
from mmrr.training.config import begin, read, with_steps
from mmrr.training.data.page_texts import BatchMaker, BatchSize, PairMaker, TextReports, read_text_pairs, trials
from mmrr.training.families import kalm_init
from mmrr.training.families.kalm import Judge, Words, matryoshka, train, yes_no
from mmrr.training.pointing import pointing_loss_of_weights
from mmrr.training.synthetic.sources import Block, Document, Question, read_documents
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.texts import write_texts

TOLERANCE = 1e-4
SHAPE = """
[shape]
vocabulary = 700
layers = 3
hidden = 32
mlp = 48
heads = 2
kv_heads = 1
head_dim = 16
window = 8
"""
SMALL = "workers = 0\nwarmup = 1\nsave_every = 2\nlr = 3e-3\npages = 3\nqueries = 4\n"
SCRATCH = f'documents = "texts.jsonl"\nheld_out = 0.25\nwords = 90\ndtype = "float32"\n{SMALL}'
QUERIES = ["Who opened the Ferry of Skarrow 0?", "key 3a hangs by the door", "yes or no?", "<end_of_turn>naïve 漢字"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kalm")
    write_texts(folder / "texts.jsonl")
    return folder


def config(folder: Path, lines: str):
    path = folder / "config.toml"
    path.write_text(f'scorer = "kalm"\n{lines}')
    return read(path, "reranker")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    settings = config(folder, f"{SCRATCH}steps = 4\nevaluate_every = 4\n{SHAPE}")
    begin(folder / "run", "reranker", settings)
    records = list(train(settings, folder / "run"))
    assert [record["step"] for record in records] == [2, 4]
    assert all(math.isfinite(record[name]) for record in records for name in ("loss", "judged", "pointed"))
    for name in ("question_r1", "question_r4", "phrase_r1", "phrase_r4"):
        assert 0 <= records[-1][name] <= 1
    return folder / "run"


def load(path: Path, ratio: int = 4) -> kalm.Scorer:
    checkpoint = checkpoints.resolve(str(path), None, HashCache(path / "hashes.json"), kalm.SPEC.model_types)
    return kalm.Scorer(checkpoint, kalm.resolve(kalm.Prepare(ratio=ratio), checkpoint.config()), CPU, torch.float32)


@pytest.fixture(scope="module")
def judge(run: Path) -> Judge:
    return Judge(load(run / "checkpoint"), 1.0, Words(run / "checkpoint")).eval()


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[str]:
    return [page.text for page in TextReports(read_documents(folder / "texts.jsonl"), 0, 90).pages(1)][:4]


# Losses


def test_the_loss_is_the_likelihood_of_the_answers_token() -> None:
    """The two margins and probabilities of the published model card: 8.78125, 0.99984646; -14.1875, 6.8936e-07."""
    for margin, p_yes in ((8.78125, 0.99984646), (-14.1875, 6.8936e-07)):
        yes, no = (float(yes_no(torch.tensor([margin]), torch.tensor([label]))) for label in (1.0, 0.0))
        assert math.exp(-yes) == pytest.approx(p_yes, rel=1e-5)
        assert math.exp(-no) == pytest.approx(1 - p_yes, rel=1e-3)
    for z, yes, no in ((1.5, 0.25, -1.25), (-0.3, 2.0, 2.3)):  # log-softmax of two logits
        expected = -torch.log_softmax(torch.tensor([yes, no]), 0)[0]
        assert float(yes_no(torch.tensor([z]), torch.tensor([1.0]))) == pytest.approx(float(expected), abs=1e-6)


def test_a_teachers_probability_is_a_soft_label() -> None:
    """Binary cross-entropy between the student's and the teacher's P(yes); it is smallest where they agree."""
    margin, teacher = torch.tensor([0.7], requires_grad=True), torch.tensor([0.2])
    p = float(torch.sigmoid(margin.detach()))
    expected = -0.2 * math.log(p) - 0.8 * math.log(1 - p)
    assert float(yes_no(margin, teacher).detach()) == pytest.approx(expected, abs=1e-6)
    at_teacher = torch.logit(teacher).requires_grad_(True)
    yes_no(at_teacher, teacher).backward()
    assert float(at_teacher.grad) == pytest.approx(0, abs=1e-7)


def test_matryoshka_is_the_mean_over_the_ratios() -> None:
    assert float(matryoshka([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(6.0)])) == 3.0


def test_pointing_is_the_attention_that_falls_on_the_targets() -> None:
    weights = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    found = pointing_loss_of_weights(weights, torch.tensor([[0.0, 1.0, 1.0]]))
    assert float(found) == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2, abs=1e-5)


# The training forward


@pytest.mark.parametrize("ratio", kalm.RATIOS)
def test_the_training_forward_is_the_scorers(run: Path, judge: Judge, texts: list[str], ratio: int) -> None:
    """Padded pages and prompts of all lengths give the scorer's scores of the checkpoint, within 1e-4."""
    scorer = load(run / "checkpoint", ratio)
    states, shared = scorer.prepare(texts, [None] * len(texts)), scorer.shared_state()
    windows = judge.windows(texts)
    pairs = [(page, query) for query in QUERIES for page in range(len(texts))]
    with torch.no_grad():
        found, _ = judge(judge.read(windows), judge.rows(pairs, texts, windows), ratio)
    expected = torch.cat([scorer.score(query, states, shared, kalm.Score()) for query in QUERIES])
    assert (found - expected).abs().max() <= TOLERANCE
    assert expected.std() > 1e-3


def test_gradients_reach_encoder_and_decoder_from_every_ratio(judge: Judge, folder: Path) -> None:
    make = BatchMaker(TextReports(read_documents(folder / "texts.jsonl"), 0, 90), 9, 0, BatchSize(3, 4, kalm.RATIOS, 1))
    judge.model.requires_grad_(True)
    seen = set()
    for step in range(8):
        batch = make(step)
        seen |= set(batch.ratios)
        judge.losses(batch)["loss"].backward()
        idle = [name for name, weight in judge.model.named_parameters() if weight.grad is None]
        assert idle == []
        judge.model.zero_grad(set_to_none=True)
    assert len(seen) > 2
    judge.model.requires_grad_(False)


def test_a_few_steps_learn_one_batch(run: Path, folder: Path) -> None:
    """From random init, the loss of one batch at two ratios falls below a half."""
    random_judge = Judge(load(run / "start"), 0.1, Words(run / "start"))
    random_judge.model.requires_grad_(True)
    batch = BatchMaker(TextReports(read_documents(folder / "texts.jsonl"), 0, 60), 9, 0, BatchSize(3, 4, (2, 8), 0))(0)
    optimizer = torch.optim.AdamW([p for p in random_judge.parameters() if p.requires_grad], 5e-3)
    judged = []
    for _ in range(40):
        losses = random_judge.losses(batch)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        judged.append(float(losses["judged"].detach()))
    assert judged[-1] < judged[0] / 2


# Runs


def test_a_resumed_run_has_the_same_losses(folder: Path) -> None:
    settings = config(folder, f"{SCRATCH}steps = 4\n{SHAPE}".replace("held_out = 0.25", "held_out = 0.0"))
    one, other = folder / "whole", folder / "parts"
    expected = list(train(settings, one))
    records = train(settings, other)
    next(records)  # two steps; the loop writes the state when it continues
    next(records)
    records.close()
    assert not (other / "checkpoint").exists()
    again = list(train(settings, other))
    assert [record["step"] for record in again] == [4]
    for name in ("loss", "judged", "pointed", "accuracy", "norm"):
        assert again[-1][name] == expected[-1][name]
    list(train(settings, other))  # no step is left; only the checkpoint is written
    first, second = (load_file(path / "checkpoint" / "model.safetensors") for path in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [json.loads(line)["step"] for line in (other / "log.jsonl").read_text().splitlines()] == [2, 4]


def test_the_checkpoint_is_in_the_published_layout(run: Path) -> None:
    path = run / "checkpoint"
    weights = load_file(path / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert (
        sum("embed_tokens.weight" in name or "out_proj.weight" in name for name in weights if "vision" not in name) == 1
    )
    assert json.loads((path / "config.json").read_text())["model_type"] == "t5gemma2"
    assert {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in path.iterdir()}
    checkpoint = checkpoints.resolve(str(path), None, HashCache(path / "hashes.json"), kalm.SPEC.model_types)
    with pytest.raises(MmrrError, match="image processor does not load"):  # its vision tower is untrained
        kalm.Scorer(checkpoint, kalm.Prepare(image=True), CPU, torch.float32)


def test_the_default_shape_is_below_13_megabytes() -> None:
    tokenizer = kalm_init.train_tokenizer(["yes no"], 300)
    settings = kalm_init.config(kalm_init.Shape(), tokenizer)
    text = settings.decoder
    per_layer = 2 * text.hidden_size * text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
    per_layer += 3 * text.hidden_size * text.intermediate_size
    weights = kalm_init.Shape().vocabulary * text.hidden_size + 2 * text.num_hidden_layers * per_layer
    assert 2 * weights < 12.9e6


# Tokens


def test_fixed_phrases_are_single_tokens_and_control_strings_are_plain_text(judge: Judge) -> None:
    before, after = judge.scorer.prompt("ferry", kalm.INSTRUCTION)
    assert len(before) == 5  # <bos>, <start_of_turn>, three phrases
    query = judge.backbone.text.encode(" ferry")
    assert after[: len(query)] == query
    assert len(after) - len(query) == 5  # <end_of_turn>, line break and its space, <start_of_turn>, model
    text = judge.backbone.text
    assert len({text.word("yes"), text.word("no")}) == 2
    forged = text.encode("a<end_of_turn>\n<bos>")
    assert not {text.control("<end_of_turn>"), text.control("<bos>")} & set(forged)
    other = judge.scorer.prompt("ferry", "Find the page.")[0]
    assert other[:3] == before[:3]


def test_capitals_and_line_breaks_do_not_change_a_words_tokens(judge: Judge) -> None:
    encode = judge.backbone.text.encode
    assert encode(" the Ferry") == encode(" THE ferry")
    lines, line = encode(" the\n\n  ferry"), encode(" the ferry")
    assert [i for i in lines if i in line] == line
    assert len(lines) == len(line) + 1
    for text in ("naïve 1,452.4 漢字", "<Document>: key 3a\nkey 3b"):
        assert encode(judge.backbone.text.decode(encode(text))) == encode(text)


def test_words_end_where_their_last_token_does(judge: Judge) -> None:
    text = "<Document>: The Ferry\n of Skarrow, 1,452 naïve lighthouses"
    ids = judge.backbone.text.encode(text)
    assert judge.words
    found = judge.words.last_tokens(text, ids)
    assert [word for word, _ in found] == ["document", "the", "ferry", "skarrow", "1452", "naive", "lighthouses"]
    for word, at in found:
        read_so_far = judge.backbone.text.decode(ids[: at + 1]).rstrip(":,")
        assert "".join(filter(str.isalnum, read_so_far)).replace("ï", "i").endswith(word)
    assert judge.words.last_tokens(text, ids[:4])[-1][1] < 4  # a window that ends inside the text


# Pages and queries


def test_pages_hold_the_reports_words_in_order_and_know_their_questions() -> None:
    blocks = (
        Block("heading", "Alpha"),
        Block("text", " ".join(f"w{i}" for i in range(100))),
        Block("table", rows=(("Month", "Rain"), ("May", "77 mm"))),
        Block("text", "the end " * 900),
    )
    questions = (
        Question("Which comes last?", "w99", 1),
        Question("Where is it all?", "not written", 1),
        Question("How much rain?", "77 mm", None),
        Question("What was cut off?", "not written", 3),
    )
    reports = TextReports([Document("a", "s", "", blocks, questions)], 0, 60)
    for number in range(4):
        pages = reports.pages(number)
        assert len(pages) == 8
        assert all(len(page.words) == 60 for page in pages)
        assert [word for page in pages for word in page.words] == " ".join(page.text for page in pages).split()
        if not any(page.questions for page in pages):
            continue  # a scrambled report
        assert [word for page in pages for word in page.words][:3] == ["Alpha", "w0", "w1"]
        found = {one.text: one.pages for page in pages for one in page.questions}
        assert found == {"Which comes last?": (1,), "Where is it all?": (0, 1), "How much rain?": (1,)}
        break
    else:
        raise AssertionError("all reports were scrambled")
    assert reports.pages(0) == reports.pages(0)


def test_batches_depend_on_their_number_alone(folder: Path) -> None:
    documents = read_documents(folder / "texts.jsonl")
    one, other = (BatchMaker(TextReports(documents, 1, 90), 50, 1, BatchSize(4, 8, kalm.RATIOS, 2)) for _ in range(2))
    one(0)
    assert one(7) == other(7)
    assert one(7) != one(8)
    batch = one(7)
    assert len(batch.pages) == 4
    assert len(set(batch.ratios)) == 2
    labels = [example.yes for queries in batch.queries for example in queries]
    assert 0.3 < sum(labels) / len(labels) < 0.7


def test_trials_are_queries_that_some_pages_do_not_answer(folder: Path) -> None:
    found = trials(TextReports(read_documents(folder / "texts.jsonl"), 0, 90), range(4), 5)
    assert found["question"]
    assert found["phrase"]
    for trial in [*found["question"], *found["phrase"]]:
        assert all(answers and len(answers) < len(trial.pages) for _, answers in trial.queries)
    for trial in found["phrase"]:
        for text, (page,) in trial.queries:
            assert text.split()[0] in trial.pages[page]


# Pairs


def write_pairs(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


PAIRS = [
    {"query": f"q{i}", "text": f"text of q{i if i % 2 else 99} number {i // 2}", "relevant": i % 2 == 1}
    for i in range(8)
]


def test_a_checkpoint_is_tuned_on_pairs(run: Path, folder: Path) -> None:
    soft = [*PAIRS[:7], {"query": "soft", "text": PAIRS[0]["text"], "teacher": 0.4}]
    write_pairs(folder / "pairs.jsonl", *soft)
    lines = 'model = "run/checkpoint"\npairs = "pairs.jsonl"\nvalidation = "pairs.jsonl"\ndtype = "float32"\n'
    settings = config(folder, f"{lines}{SMALL}steps = 2\nevaluate_every = 2\n")
    lines_out: list[str] = []
    (record,) = train(settings, folder / "tuned", lines_out.append)
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(record)
    assert "pointed" not in record
    assert lines_out[0] == "8 pairs of 8 texts" or lines_out[0].startswith("8 pairs of")
    before, after = (load_file(folder / name / "checkpoint" / "model.safetensors") for name in ("run", "tuned"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.decoder.norm.weight"], after["model.decoder.norm.weight"])
    scorer = load(folder / "tuned" / "checkpoint")
    states = scorer.prepare(["text"], [None])
    assert torch.isfinite(scorer.score("q", states, scorer.shared_state(), kalm.Score())).all()


def test_every_pair_comes_once_an_epoch(folder: Path) -> None:
    records = [{"query": f"q{i}", "text": f"text {i % 3}", "relevant": i % 2 == 0} for i in range(10)]
    pairs = read_text_pairs(write_pairs(folder / "many.jsonl", *records))
    make = PairMaker(pairs, 0, BatchSize(1, 2, (4,), 0))
    for epoch in range(2):
        seen = [
            (batch.pages[0], one.query, one.yes)
            for batch in (make(epoch * make.groups.an_epoch + n) for n in range(make.groups.an_epoch))
            for one in batch.queries[0]
        ]
        assert sorted(seen) == sorted((f"text {i % 3}", f"q{i}", float(i % 2 == 0)) for i in range(10))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "q", "relevant": True}, r"line 2: text = None, expected a text"),
        ({"query": " ", "text": "t", "relevant": True}, r"line 2: query = ' ', expected a text"),
        ({"query": "q", "text": "t"}, r"line 2: relevant = None, expected true or false"),
        ({"query": "q", "text": "t", "teacher": 1.5}, r"line 2: teacher = 1.5, expected a number from 0 to 1"),
        ([], r"line 2: found list, expected an object"),
    ],
)
def test_an_invalid_pair_is_refused_with_its_line(folder: Path, record: object, message: str) -> None:
    with pytest.raises(MmrrError, match=message):
        read_text_pairs(write_pairs(folder / "bad.jsonl", PAIRS[0], record))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "neither of `documents` and `pairs`"),
        ('documents = "texts.jsonl"\npairs = "pairs.jsonl"\n', "both of `documents` and `pairs`"),
        ('pairs = "pairs.jsonl"\n', "`pairs` need a `model`"),
        (f"{SCRATCH}ratios = [3]\n", r"ratios = \[3\]; expected one or more of 1, 2, 4"),
        (f"{SCRATCH}ratios = [4]\nratios_a_step = 2\n", "ratios_a_step = 2; expected 0 to 1"),
        ('documents = "texts.jsonl"\npages = 1\n', "pages = 1; expected 2 or more"),
        ('documents = "texts.jsonl"\ndtype = "float16"\n', "dtype = 'float16'"),
        (f"{SCRATCH}depth = 2\n", "unknown key depth"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, lines: str, message: str) -> None:
    with pytest.raises(MmrrError, match=message):
        config(folder, lines)


def test_two_layers_cannot_point(folder: Path) -> None:
    settings = with_steps(config(folder, SCRATCH + SHAPE.replace("layers = 3", "layers = 2")), 1)
    with pytest.raises(MmrrError, match="layers = 2; the pointing loss needs 3 or more"):
        list(train(settings, folder / "shallow"))
