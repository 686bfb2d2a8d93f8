"""The contract of training: pairs and configs are read strictly, what is learnt is what ranks, a killed run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from mmrr.embedders import qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.modeling.plain_forward import one_layer, score_states
from mmrr.modeling.saliency import choose
from mmrr.plots import draw_curves
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from mmrr.training import config, finetune, loop, lora
from mmrr.training.data.pairs import ContrastiveBatches, JudgedPages, read_pairs
from mmrr.training.distributed import Crew, placed
from mmrr.training.from_scratch import run as scratch
from mmrr.types import KeptTokens
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import mmrr, refused
from tests.tiny import late

TOLERANCE = 1e-4
QUERIES = ("When is the thesis due?", "lorem", "a longer question about the red box")


@pytest.fixture
def folder(tmp_path, page_images):
    """Four page images, and pairs of each with each query; every third is relevant."""
    made = tmp_path / "pairs"
    made.mkdir()
    for i, image in enumerate(page_images):
        image.save(made / f"{i}.png")
    records = [
        {"query": query, "image": f"{i}.png", "relevant": (i + q) % 3 == 0, "page_id": f"doc/{i}"}
        for i in range(4)
        for q, query in enumerate(QUERIES)
    ]
    write_lines(made / "pairs.jsonl", records)
    return made


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


# Pairs


def test_pairs_are_read_in_order_with_images_beside_them(folder):
    pairs = read_pairs(folder / "pairs.jsonl")
    assert len(pairs) == 12
    assert pairs[0].query == QUERIES[0]
    assert (pairs[0].relevant, pairs[1].relevant) == (True, False)
    assert pairs[3].image == (folder / "1.png").resolve()


def test_parquet_is_the_same(folder):
    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "pairs.parquet")
    assert read_pairs(folder / "pairs.parquet") == read_pairs(folder / "pairs.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"query": ["a"], "image": ["0.png"]}), folder / "less.parquet")
    with pytest.raises(MmrrError, match=r"less.parquet: found no column relevant, expected query, image, relevant"):
        read_pairs(folder / "less.parquet")
    (folder / "no.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(MmrrError, match=r"cannot read .*no.parquet"):
        read_pairs(folder / "no.parquet")
    records[1]["relevant"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "gap.parquet")
    with pytest.raises(MmrrError, match=r"gap.parquet, row 2: found no relevant"):
        read_pairs(folder / "gap.parquet")


GOOD = {"query": "q", "image": "0.png", "relevant": True}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "invalid JSON"),
        ("[1]", "found list, expected an object"),
        (json.dumps({"query": "q", "image": "0.png"}), "found no relevant"),
        (json.dumps(GOOD | {"query": " "}), "query = ' ', expected a text"),
        (json.dumps(GOOD | {"query": "\ud800"}), "unpaired surrogate"),
        (json.dumps(GOOD | {"image": 3}), "image = 3"),
        (json.dumps(GOOD | {"image": "9.png"}), "there is no image"),
        (json.dumps(GOOD | {"image": "../x.png"}), "is outside"),
        (json.dumps(GOOD | {"image": "/etc/hostname"}), "is outside"),
        (json.dumps(GOOD | {"relevant": 1}), "relevant = 1, expected true or false"),
        (json.dumps(GOOD | {"relevant": False}), "both relevant and not relevant"),
    ],
)
def test_a_bad_line_is_named_by_its_number(folder, line, problem):
    (folder / "pairs.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{line}\n", "utf-8")
    with pytest.raises(MmrrError, match=r"pairs.jsonl, line 3: ") as error:
        read_pairs(folder / "pairs.jsonl")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_folder_is_refused_and_another_root_can_be_named(folder, tmp_path):
    elsewhere = write_lines(tmp_path / "elsewhere.jsonl", [GOOD])
    with pytest.raises(MmrrError, match="there is no image"):
        read_pairs(elsewhere)
    assert read_pairs(elsewhere, folder)[0].image == (folder / "0.png").resolve()
    inner = folder / "inner"
    inner.mkdir()
    (inner / "0.png").symlink_to(folder / "0.png")
    with pytest.raises(MmrrError, match="is outside"):
        read_pairs(write_lines(inner / "pairs.jsonl", [GOOD]))


def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(folder):
    pairs = read_pairs(folder / "pairs.jsonl")
    make, again = (JudgedPages(pairs, seed=0, pages=1, queries=2) for _ in range(2))
    assert make.groups.an_epoch == 8  # three queries a page: two and one

    def epoch(number, batches):
        groups = [batches(number * 8 + n)[0] for n in range(8)]
        return [(query, group.path) for group in groups for query in group.queries]

    first, second = epoch(0, make), epoch(1, make)
    assert sorted(first) == sorted(second) == sorted((pair.query, pair.image) for pair in pairs)
    assert first != second
    assert (epoch(1, again), epoch(0, again)) == (second, first)  # by number alone, whatever came before


def test_contrast_takes_wrong_pages_and_excuses_right_ones(folder):
    make = ContrastiveBatches(read_pairs(folder / "pairs.jsonl"), seed=0, queries=4, negatives=2)
    right = {query: set(paths) for query, (paths, _) in make.by_query.items()}
    assert make.an_epoch == 4
    batch = make(0)
    assert sorted(batch.queries) == sorted([QUERIES[0], QUERIES[0], QUERIES[1], QUERIES[2]])
    assert len(batch.pages) == 4
    for query, answer, excused in zip(batch.queries, batch.answers, batch.also_relevant, strict=True):
        assert answer not in excused
        assert len(excused) == len(right[query]) - 1


# Configs


def write_config(path, **values):
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), "utf-8")
    return path


def test_the_defaults_are_the_papers(tmp_path):
    made = config.read(write_config(tmp_path / "c.toml", model="owner/name", pairs="p/pairs.jsonl"), "reranker")
    assert (made.rank, made.alpha, made.lr, made.warmup, made.band, made.model) == (
        16,
        32,
        1e-4,
        0.03,
        "auto",
        "owner/name",
    )
    assert made.pairs == tmp_path / "p" / "pairs.jsonl"  # beside the config, wherever the command runs
    schedule = made.schedule(100)
    assert [round(schedule.rate(step) / 1e-4, 3) for step in (0, 2, 3)] == [0.333, 1.0, 1.0]
    assert schedule.rate(99) < 1e-7
    assert schedule.rate(51) == pytest.approx(0.5e-4, abs=2e-6)


def test_a_model_beside_the_config_is_that_folder(tmp_path):
    (tmp_path / "model").mkdir()
    made = config.read(write_config(tmp_path / "c.toml", model="model", pairs="x"), "embedder")
    assert made.model == str(tmp_path / "model")
    assert made.temperature == 0.05


def test_a_config_for_training_from_nothing(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('documents = "texts.jsonl"\nsteps = 7\nlr = 1\n[shape]\nlayers = 3\ndeepstack = [0, 1]\n')
    made = config.read(path, "reader")
    assert made.documents == (tmp_path / "texts.jsonl",)
    assert (made.shape.layers, made.shape.deepstack, made.shape.hidden) == (3, (0, 1), 256)
    assert (made.schedule().steps, made.schedule().lr, made.held_out) == (7, 1.0, 0.1)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model": "m", "pairs": "p", "rnak": 3}, "unknown key rnak; valid: model, revision, pairs,"),
        ({"model": "m"}, "no key `pairs`, and it has no default"),
        ({"pairs": "p"}, "neither of `model` and `documents`"),
        ({"model": "m", "documents": "d"}, "both of `model` and `documents`"),
        ({"documents": "d", "rank": 3}, "unknown key rank"),
        ({"model": "m", "pairs": "p", "temperature": 0.1}, "unknown key temperature"),  # of the embedder alone
        ({"model": "m", "pairs": "p", "lr": "high"}, "lr = 'high'; expected a number"),
        ({"model": "m", "pairs": "p", "rank": 1.5}, "rank = 1.5; expected a whole number"),
        ({"model": "m", "pairs": "p", "rank": True}, "expected a whole number"),
        ({"model": "m", "pairs": "p", "recompute": 1}, "expected true or false"),
        ({"model": "m", "pairs": "p", "lr": 0}, "expected a number above 0"),
        ({"model": "m", "pairs": "p", "pages": 0}, "pages = 0; expected 1 or more"),
        ({"model": "m", "pairs": "p", "keep": 1.5, "embedder": "e"}, "keep = 1.5; expected a share"),
        ({"model": "m", "pairs": "p", "keep": 0.5}, "needs an embedder"),
        ({"model": "m", "pairs": "p", "dtype": "float16"}, "dtype = 'float16'"),
    ],
)
def test_a_config_that_cannot_be_meant(tmp_path, values, problem):
    path = write_config(tmp_path / "c.toml", **values)
    with pytest.raises(MmrrError) as error:
        config.read(path, "reranker")
    assert problem in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("task", "key"),
    [("reader", "pages"), ("reader", "dim"), ("embedder", "ranking"), ("embedder", "letters"), ("reranker", "dim")],
)
def test_a_key_of_another_task_is_refused(tmp_path, task, key):
    path = write_config(tmp_path / "c.toml", documents="d", **{key: 2})
    with pytest.raises(MmrrError, match=f"unknown key {key}; valid: documents,"):
        config.read(path, task)


def test_only_a_reranker_s_training_has_a_scorer(tmp_path):
    path = write_config(tmp_path / "c.toml", model="m", pairs="p", scorer="minireranker")
    assert config.read(path, "reranker").model == "m"
    with pytest.raises(MmrrError, match="unknown key scorer"):
        config.read(path, "embedder")


# The same numbers


@pytest.mark.parametrize(
    ("band", "leave", "share"),
    [((0, 6), 6, None), ((0, 4), 4, None), ((2, 6), 6, None), ((2, 4), 5, None), ((2, 4), 4, 0.5), ((1, 5), 3, 0.3)],
)
def test_the_packed_forward_equals_the_cached_one(tiny, page_images, band, leave, share):
    scorer = Scorer(tiny, Prepare(band=f"{band[0]}:{band[1]}"), CPU, torch.float32)
    for image in page_images[:2]:
        keep = None
        if share:
            grid = scorer.grid(*image.size)
            n = grid[0] * grid[1]
            kept = torch.randperm(n, generator=torch.Generator().manual_seed(3))[: round(share * n)]
            keep = KeptTokens(kept.sort().values.int(), grid)
        states = scorer.prepare([image], [keep])
        expected = [scorer.score(query, states, scorer.shared_state(), Score(exit_layer=leave)) for query in QUERIES]
        (visual,) = scorer.backbone.vision([image])
        page = scorer.backbone.page_sequence(scorer.before, visual, scorer.after, keep.indices if keep else None)
        with torch.no_grad():
            suffixes = [scorer.segments(query)[1] for query in QUERIES]
            states = score_states(scorer.backbone, page, suffixes, (band[0], min(band[1], leave)), leave)
            found = scorer.logit(scorer.backbone.final_norm(states))
        assert (found - torch.cat(expected)).abs().max() <= TOLERANCE
        assert found.std() > 10 * TOLERANCE


def reranking(folder, model, **values):
    settings = {"lr": 1e-2, "dtype": "float32", "workers": 0, "accumulate": 1, "device": "cpu", "warmup": 0, **values}
    path = write_config(folder / "train.toml", model=str(model), pairs="pairs.jsonl", **settings)
    return config.read(path, "reranker")


def losses(records):
    return {record["step"]: record["loss"] for record in records}


def test_lora_lowers_the_loss_and_its_adapter_ranks_as_it_was_trained(
    folder, tmp_path, tiny, tiny_path, tiny_embedder, tiny_embedder_path, page_images
):
    settings = reranking(folder, tiny_path, embedder=str(tiny_embedder_path), band="1:4", exit=5, pages=4, steps=3)
    before = load_file(tiny_path / "model.safetensors")
    records = list(finetune.train_reranker(settings, tmp_path / "run"))
    assert records[-1]["loss"] < records[0]["loss"]  # one batch holds all pairs: it comes again and again

    # The trained model, put together again from the run's state.
    scorer, exit_layer = finetune.load_scorer(tiny, settings, Crew(CPU))
    adapted = lora.adapt(scorer.backbone, tiny, settings.rank, settings.alpha, exit_layer, 1)
    embedder = qwen3_vl.Embedder(tiny_embedder, qwen3_vl.Prepare(), CPU, torch.float32)
    model = finetune.Reranker(scorer, adapted, exit_layer, finetune.Saliency(embedder, 0.5), False)
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(weights) == trained
    model.load_state_dict(weights, strict=False)
    make = JudgedPages(read_pairs(settings.pairs), 0, 4, 8)
    with torch.no_grad():
        pages = {page.path.stem: (page, model(page)) for page in make(0)}

    # What the commands do with the adapter.
    loaded = resolve(str(tmp_path / "run" / config.ADAPTER), None, HashCache(tmp_path / "h.json"))
    assert (loaded.path, loaded.adapter) == (tiny_path, tmp_path / "run" / config.ADAPTER)
    plain, tuned = (Scorer(one, Prepare(band="1:4"), CPU, torch.float32) for one in (tiny, loaded))
    for i, image in enumerate(page_images):
        page, z = pages[str(i)]
        keep = choose(embedder.embed_pages([image])[0], plain.grid(*image.size), 0.5)
        for query, trained_score in zip(page.queries, z, strict=True):
            scores = [
                one.score(query, one.prepare([image], [keep]), one.shared_state(), Score(exit_layer=5))
                for one in (plain, tuned)
            ]
            assert abs(scores[1] - trained_score) <= TOLERANCE
            assert abs(scores[0] - scores[1]) > 100 * TOLERANCE

    # The base, tower included, is what it was; the adapter is of the language model's layers below the exit.
    base = scorer.backbone.model.state_dict()
    for name, value in before.items():
        inside = name if name in base else name.removesuffix(".weight") + ".base_layer.weight"
        assert torch.equal(base[inside], value), name
    for name in load_file(tmp_path / "run" / config.ADAPTER / "adapter_model.safetensors"):
        assert ".language_model.layers." in name
        assert ".layers.5." not in name


def test_only_lora_is_trained(tiny, folder, tiny_path):
    settings = reranking(folder, tiny_path)
    scorer, exit_layer = finetune.load_scorer(tiny, settings, Crew(CPU))
    adapted = lora.adapt(scorer.backbone, tiny, 16, 32, exit_layer, 0)
    model = finetune.Reranker(scorer, adapted, exit_layer, None, False)
    page = JudgedPages(read_pairs(settings.pairs), 0, 1, 8)(0)
    model.losses(page)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    assert exit_layer == 3  # 57.5 % of six layers
    assert sum("lora_" in name for name, _ in model.named_parameters()) == 3 * 7 * 2


def test_recomputing_activations_changes_no_gradient(tiny, folder, tiny_path):
    found = []
    for recompute in (False, True):
        scorer, exit_layer = finetune.load_scorer(tiny, reranking(folder, tiny_path), Crew(CPU))
        adapted = lora.adapt(scorer.backbone, tiny, 4, 8, exit_layer, 0)
        model = finetune.Reranker(scorer, adapted, exit_layer, None, recompute)
        model.losses(JudgedPages(read_pairs(folder / "pairs.jsonl"), 0, 2, 8)(0))["loss"].backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_embedder_learns_and_its_adapter_embeds_as_it_was_trained(folder, tmp_path, tiny_embedder_path, page_images):
    values = {"dtype": "float32", "device": "cpu", "workers": 0, "accumulate": 1, "lr": 1e-2, "warmup": 0, "steps": 4}
    path = write_config(folder / "c.toml", model=str(tiny_embedder_path), pairs="pairs.jsonl", queries=4, **values)
    settings = config.read(path, "embedder")
    records = list(finetune.train_embedder(settings, tmp_path / "run"))
    assert records[-1]["loss"] < records[0]["loss"]

    base, tuned = (
        resolve(str(name), None, HashCache(tmp_path / "h.json"))
        for name in (tiny_embedder_path, tmp_path / "run" / config.ADAPTER)
    )
    embedder, search = finetune.load_embedder(base, settings, Crew(CPU))
    adapted = lora.adapt(embedder.backbone, base, settings.rank, settings.alpha, embedder.backbone.n_layers, 1)
    model = finetune.Embedder(embedder, search, adapted, 0.05, False)
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    model.load_state_dict(weights, strict=False)
    loaded = qwen3_vl.Embedder(tuned, qwen3_vl.Prepare(), CPU, torch.float32)
    plain = qwen3_vl.Embedder(base, qwen3_vl.Prepare(), CPU, torch.float32)
    with torch.no_grad():
        queries = model.query_vectors(QUERIES)
        pages = torch.stack([model.page_vector(image) for image in page_images])
    asked = torch.cat(loaded.embed_queries(QUERIES, qwen3_vl.Search()))
    assert (queries - asked).abs().max() <= TOLERANCE
    for vectors, embedding, before in zip(
        pages, loaded.embed_pages(page_images), plain.embed_pages(page_images), strict=True
    ):
        assert (vectors - embedding.vectors).abs().max() <= TOLERANCE
        assert (vectors - before.vectors).abs().amax(-1).min() > TOLERANCE


def test_a_model_of_late_interaction_is_not_fine_tuned(folder, tmp_path, tiny_embedder_path):
    found = resolve(str(late(tiny_embedder_path, tmp_path / "late")), None, HashCache(tmp_path / "h.json"))
    with pytest.raises(MmrrError, match="is a colqwen3 model; mmrr train embedder fine-tunes"):
        finetune.load_embedder(found, None, Crew(CPU))


# Runs


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(folder, tmp_path, tiny_path):
    settings = reranking(folder, tiny_path, pages=1, accumulate=2, steps=7, save_every=2)
    whole = losses(finetune.train_reranker(settings, tmp_path / "whole"))
    records = finetune.train_reranker(settings, tmp_path / "cut")
    killed = [next(records) for _ in range(5)]  # the state of step 4 is the last on disk
    records.close()
    assert not (tmp_path / "cut" / config.ADAPTER).exists()
    rest = losses(finetune.train_reranker(settings, tmp_path / "cut"))
    assert list(rest) == [5, 6, 7]
    assert losses(killed) | rest == whole
    logged = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert losses(logged) == whole
    assert len(logged) == 7  # step 5 once, though it was done twice
    one, other = (load_file(tmp_path / run / config.ADAPTER / "adapter_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list(finetune.train_reranker(settings, tmp_path / "cut")) == []  # done is done


def toy(run, steps=20, stop=None, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))

    def make(number):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
        return {"x": x, "y": x.sum(1, keepdim=True)}

    def loss(batch):
        return {"loss": ((model(batch["x"]) - batch["y"]) ** 2).mean()}

    records = []
    schedule = loop.Schedule(steps, 1e-2, warmup=2, save_every=5)
    for record in loop.train(loop.RunFolder(run), model, schedule, make, loss, workers=0, **options):
        records.append(record)
        if record["step"] == stop:
            break
    return records


def test_the_loop_goes_on_in_bfloat16_too(tmp_path):
    whole = losses(toy(tmp_path / "a", log_every=1))
    cut = losses(toy(tmp_path / "b", stop=13, log_every=1)) | losses(toy(tmp_path / "b", log_every=1))
    assert cut == whole
    assert min(whole.values()) < whole[1]


def test_a_record_begins_where_a_state_was_saved(tmp_path):
    """So that the means in the log are the same, wherever a run was cut."""
    whole = losses(toy(tmp_path / "a", log_every=3))
    assert list(whole) == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    toy(tmp_path / "b", stop=12, log_every=3)
    assert losses(toy(tmp_path / "b", log_every=3)) == {step: whole[step] for step in (12, 15, 18, 20)}


def test_a_log_cut_short_by_a_kill_is_mended(tmp_path):
    toy(tmp_path / "a", stop=10, log_every=5)
    log = tmp_path / "a" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 1')
    toy(tmp_path / "a", log_every=5)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [5, 10, 15, 20]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = torch.nn.Linear(1, 1)
    run = loop.train(
        loop.RunFolder(tmp_path),
        model,
        loop.Schedule(3, 1.0),
        lambda n: n,
        lambda n: {"loss": model(torch.ones(1)).sum() * (torch.nan if n else 1.0)},
        workers=0,
        log_every=1,
    )
    next(run)
    with pytest.raises(MmrrError, match="the loss is nan at step 1"):
        next(run)


def test_another_models_state_is_refused(tmp_path):
    toy(tmp_path, steps=5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(MmrrError, match="is of another model; use another --run folder"):
        loop.RunFolder(tmp_path).restore(model, optimizer)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(MmrrError, match="cannot be read"):
        loop.RunFolder(tmp_path).restore(model, optimizer)


def test_a_batch_is_placed_whole(page_images):
    found = placed(
        {"a": [torch.ones(2)], "b": (KeptTokens(torch.ones(1), (1, 1)), "text", page_images[0])}, torch.device("meta")
    )
    assert found["a"][0].is_meta
    assert found["b"][0].indices.is_meta
    assert found["b"][1:] == ("text", page_images[0])


def test_curves_are_drawn(tmp_path, monkeypatch):
    toy(tmp_path, log_every=1, evaluate=lambda: {"f1": 0.5}, evaluate_every=10)
    assert draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(MmrrError, match="cannot read"):
        draw_curves(tmp_path / "no.jsonl", tmp_path / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MmrrError, match=r"pip install 'mmrr\[train\]'"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")


# The command


def test_the_command_trains_and_goes_on(folder, tmp_path, tiny_path):
    reranking(folder, tiny_path, steps=3, validation="pairs.jsonl")
    run = tmp_path / "run"
    command = ("train", "reranker", "--config", folder / "train.toml", "--run", run)
    result = mmrr(*command)
    assert result.stdout == f"{run / 'adapter'}\n"
    assert "12 pairs on 4 pages; band 2:3, exit 3, 100% of the tokens" in result.stderr
    assert "step 3 of 3  loss" in result.stderr
    assert {path.name for path in run.iterdir()} >= {"adapter", "curves.png", "log.jsonl", "run.json"}
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "right", "lr", "val_loss", "val_right"} <= set(last)
    assert "had all its steps" in mmrr(*command).stderr
    document = json.loads(mmrr(*command, "--steps", 4, "--json").stdout)
    assert document["result"] == str(run / "adapter")
    assert document["last"]["step"] == 4
    reranking(folder, tiny_path, steps=3, lr=2e-2)
    assert "was begun with lr = 0.01, now it is 0.02" in refused(*command)


def test_two_commands_in_one_run_folder_are_refused(folder, tmp_path, tiny_path):
    settings = tmp_path / "reranker.toml"
    settings.write_text(f'model = "{tiny_path}"\npairs = "{folder / "pairs.jsonl"}"\n')
    with loop.alone(tmp_path / "run"):
        line = refused("train", "reranker", "--config", settings, "--run", tmp_path / "run")
    assert "another mmrr train is at work in" in line
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_command_refuses_in_one_line(folder, tmp_path, tiny_path):
    reranking(folder, tiny_path)
    command = ("--config", folder / "train.toml", "--run", tmp_path / "run")
    assert "expected reader, embedder, reranker" in refused("train", "judge", *command)
    assert "a reader is trained from nothing" in refused("train", "reader", *command)
    assert "cannot read" in refused("train", "reranker", "--config", tmp_path / "no.toml", "--run", tmp_path / "run")
    (folder / "train.toml").write_text("model = ")
    assert "is no valid TOML" in refused("train", "reranker", *command)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_open_is_one_line(folder, tmp_path, tiny_path, workers):
    reranking(folder, tiny_path, workers=workers)
    (folder / "2.png").write_bytes(b"no image")
    result = mmrr("train", "reranker", "--config", folder / "train.toml", "--run", tmp_path / "run", code=1)
    assert "2.png does not open as an image" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_band_or_pairs_that_do_not_fit_are_refused(folder, tmp_path, tiny_path):
    command = ("train", "reranker", "--config", folder / "train.toml", "--run", tmp_path / "run")
    reranking(folder, tiny_path, band="2:5", exit=2)
    assert "exit = 2 does not fit band 2:5; expected 3 to 6" in refused(*command)
    reranking(folder, tiny_path, band="2:9")
    assert "band 2:9 does not fit a model of 6 layers" in refused(*command)
    write_lines(folder / "pairs.jsonl", [GOOD])
    assert "all 1 pairs are relevant; a reranker learns from both" in refused(*command)


def test_an_adapter_is_no_base(folder, tmp_path, tiny_path):
    list(finetune.train_reranker(reranking(folder, tiny_path, steps=1), tmp_path / "run"))
    again = reranking(folder, tmp_path / "run" / "adapter")
    with pytest.raises(MmrrError, match="is a LoRA adapter; merge it"):
        next(finetune.train_reranker(again, tmp_path / "run2"))


def test_stopped_by_hand_it_says_how_to_go_on(folder, tmp_path, tiny_path, monkeypatch):
    settings = reranking(folder, tiny_path, steps=6, save_every=2)
    whole = finetune.train_reranker

    def interrupted(*args):
        for record in whole(*args):
            yield record
            if record["step"] == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "train_reranker", interrupted)
    command = ("train", "reranker", "--config", folder / "train.toml", "--run", tmp_path / "run")
    result = mmrr(*command, code=130)
    assert result.stdout == ""
    assert f"stopped; the state of step 2 is in {tmp_path / 'run'}; run the same command again" in result.stderr
    monkeypatch.setattr(finetune, "train_reranker", whole)
    mmrr(*command)
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses(logged) == losses(whole(settings, tmp_path / "whole"))


def test_a_config_with_documents_trains_from_nothing(tmp_path, monkeypatch):
    asked = []

    def train_reader(settings, run):
        asked.append(settings)
        yield from toy(run, settings.steps)

    monkeypatch.setattr(scratch, "train_reader", train_reader)
    path = write_config(tmp_path / "c.toml", documents=["texts.jsonl"], steps=20)
    result = mmrr("train", "reader", "--config", path, "--run", tmp_path / "run")
    assert result.stdout == f"{tmp_path / 'run' / 'checkpoint'}\n"
    assert asked[0].documents == (tmp_path / "texts.jsonl",)
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batches(folder, tmp_path, tiny_path):
    reranking(folder, tiny_path, pages=1, accumulate=2, steps=4)
    mmrr("train", "reranker", "--config", folder / "train.toml", "--run", tmp_path / "one")
    reranking(folder, tiny_path, pages=1, accumulate=1, steps=4)
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    command = ("-m", "mmrr.cli.main", "train", "reranker", "--config", "train.toml", "--run", tmp_path / "two")
    done = subprocess.run([*launch, *map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'adapter'}\n"  # one of them speaks
    one, two = (
        [json.loads(line)["loss"] for line in (Path(tmp_path) / run / "log.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_layer_is_the_layer(tiny):
    """States and gradients of a layer, plain and compiled, in float32 within 1e-5 and 1e-4 of their size."""
    backbone = Scorer(tiny, Prepare(band="0:6"), CPU, torch.float32).backbone
    backbone.text.requires_grad_(True)
    compiled = torch.compile(one_layer, dynamic=True)
    for texts, length in ((2, 7), (1, 33), (3, 12)):
        x = torch.randn(texts, length, backbone.config.text_config.hidden_size)
        rotary = backbone.rotary(torch.arange(length).expand(3, 1, -1))
        found = []
        for layer in (one_layer, compiled):
            backbone.text.zero_grad()
            state = layer(backbone, 1, x, rotary)
            state.square().sum().backward()
            found.append((state.detach(), backbone.text.layers[1].self_attn.q_proj.weight.grad.clone()))
        (plain, slope), (fused, its_slope) = found
        assert (plain - fused).abs().max() <= 1e-5 * plain.abs().max()
        assert (slope - its_slope).abs().max() <= 1e-4 * slope.abs().max()
