"""EDJE with Qwen3-VL as its vision encoder."""

from __future__ import annotations

import json

import pytest
import torch

from mmrr.backbones import edje as backbone
from mmrr.backbones.qwen3_vl import Backbone
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import edje
from mmrr.scorers.edje import Score, canonical
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.scorers.edje.reference import HEADS, QUERIES, TOLERANCE, VOCABULARY, Original, pieces, scorer_of, write_edje


@pytest.fixture(scope="module")
def over_qwen(tmp_path_factory):
    """Writes a checkpoint for the tiny Qwen3-VL's tokens of width 64, with compression or Local, with more config."""

    def write(name, local=False, **config):
        path = tmp_path_factory.mktemp("over") / name
        torch.manual_seed(9)
        original = Original(local=local, positions=64 + 48 if local else 512, width=64)
        write_edje(path, original)
        values = {"num_attention_heads": HEADS, "adapter_attention_heads": 4, **config}
        (path / "config.json").write_text(json.dumps(values))
        return resolve(str(path), None, HashCache(path.parent / "hashes.json"), edje.SPEC.model_types), original

    return write


def test_pages_are_read_as_rendered_by_a_qwen3_vl(over_qwen, tiny_path, page_images):
    checkpoint, original = over_qwen("compressed")
    scorer = scorer_of(checkpoint, tiny_path)
    stock = Backbone(tiny_path, None, CPU, torch.float32, needs_head=False)
    expected = [visual.tokens for visual in stock.vision(page_images)]
    assert [len(tokens) for tokens in expected] == [35, 32, 36, 6]
    original.vision_projection.attention.num_heads = 4
    original.vision_projection.attention.head_dim = 16
    z = torch.stack([original.vision_projection(tokens[None])[0] for tokens in expected])
    for image, page in zip(page_images, z, strict=True):
        assert (scorer.compress(image) - page).abs().max() <= TOLERANCE * page.abs().max()
    scores = torch.tensor([scorer.score_uncached(QUERIES[0], image, None, Score()) for image in page_images])
    assert (scores - original.score([pieces(QUERIES[0])] * 4, z)).abs().max() <= TOLERANCE
    assert scorer.prepare(page_images[:1], [None])[0]["z"].shape == (4, 12)
    assert scorer_of(checkpoint, tiny_path, tiles=2).compress(page_images[0]).shape == (8, 12)


def test_a_local_page_with_qwen3_vl_has_a_variable_number_of_tokens(over_qwen, tiny_path, page_images):
    checkpoint, _ = over_qwen("local", local=True)
    scorer = scorer_of(checkpoint, tiny_path)
    assert scorer.prepare_options.tokens == 48
    pages = [*page_images, page_images[0].resize((320, 256))]  # the last one has 80 tokens, more than the positions
    states = scorer.prepare(pages, [None] * 5)
    assert [len(state["z"]) for state in states] == [35, 32, 36, 6, 42]
    planned = [edje.cache_bytes(scorer.prepare_options, checkpoint.config(), len(state["z"]), 4) for state in states]
    assert planned == [state["z"].nbytes for state in states]
    assert edje.pruning_grid(scorer.prepare_options, checkpoint.config()) == (32, 48)
    together = scorer.score(QUERIES[0], [*states, states[0]], {}, Score())
    alone = torch.cat([scorer.score(QUERIES[0], [state], {}, Score()) for state in [*states, states[0]]])
    assert (together - alone).abs().max() <= TOLERANCE
    assert together.std() > 100 * TOLERANCE
    with pytest.raises(MmrrError, match="tiles 2: expected 1 to 1"):
        scorer_of(checkpoint, tiny_path, tiles=2)


def test_the_adapter_has_the_heads_of_config_or_of_the_vision_encoder(over_qwen, tiny_path, page_images):
    checkpoint, _ = over_qwen("three", adapter_attention_heads=3)
    with pytest.raises(MmrrError, match="an adapter of width 64 cannot have 3 attention heads"):
        scorer_of(checkpoint, tiny_path).prepare(page_images[:1], [None])
    assert backbone.adapter_heads({}, 2) == backbone.vision_heads(json.loads((tiny_path / "config.json").read_text()))


def test_a_checkpoint_may_keep_punctuation(over_qwen, tiny_path):
    with_it, without = (
        scorer_of(over_qwen(f"p{punctuation}", punctuation=punctuation)[0], tiny_path) for punctuation in (True, False)
    )
    assert canonical("It\u2019s 3.5_%", punctuation=True) == "it\u2019s 3.5_%"
    unknown = VOCABULARY.index("[UNK]")
    assert with_it.text_ids("box. page")[1:-1] == [*pieces("box"), unknown, *pieces("page")]
    assert without.text_ids("box. page")[1:-1] == pieces("box page")
