"""The checkpoint that ships: what it says about images that it has never seen, measured on the file itself."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from evaluate import UNSEEN_PAIRS, Score, all_pairs, open_images, open_unseen, score, table
from properties import NAMES, PROMPT, read_answer

from jobs.tokenizer import load_tokenizer
from store.checkpoint import Checkpoint, open_checkpoint
from store.demo import PHOTOS, WEIGHTS

README = Path(__file__).parent.parent / "examples" / "demo" / "README.md"
KEPT, EACH, ALL = 0.60, 0.90, 0.95      # share of pairs beyond a margin; of them right, for each property and over all


@cache
def checkpoint() -> Checkpoint:
    return open_checkpoint(WEIGHTS)


@cache
def photographs() -> Score:
    images = open_images(PHOTOS, checkpoint())
    return score(checkpoint(), images, all_pairs(len(images.values)))


@cache
def unseen() -> Score:
    return score(checkpoint(), open_unseen(checkpoint()), np.arange(2 * UNSEEN_PAIRS).reshape(-1, 2))


@pytest.mark.parametrize("scored", [photographs, unseen], ids=["photographs", "generated"])
@pytest.mark.parametrize("form", ["right", "labels"], ids=["long answers", "labels"])
def test_what_it_says_is_right_where_a_difference_exceeds_the_margin(scored: object, form: str) -> None:
    result = scored()      # type: ignore[operator]
    right = getattr(result, form)

    assert (result.asked >= KEPT * result.pairs).all(), dict(zip(NAMES, result.asked / result.pairs, strict=True))
    assert (right >= EACH * result.asked).all(), dict(zip(NAMES, right / result.asked, strict=True))
    assert right.sum() >= ALL * result.asked.sum()


def test_its_answers_are_one_or_two_sentences_about_all_five_properties_of_differing_lengths() -> None:
    tokenizer = load_tokenizer(checkpoint())

    lengths = set()
    for text in photographs().texts + unseen().texts:
        assert set(read_answer(text)) == set(NAMES), text
        assert re.fullmatch(r"[A-Z][^.]*\.( [A-Z][^.]*\.)?", text), text
        lengths.add(len(tokenizer.encode(text)) + 1)      # with the token that ends it
    assert min(lengths) >= 15
    assert max(lengths) <= 40
    assert len(lengths) >= 3


def test_the_table_in_its_readme_is_what_the_script_makes() -> None:
    shown = re.search(r"<!-- results -->\n(.*?)\n<!-- end of results -->", README.read_text(), re.DOTALL)

    assert shown
    assert shown[1] == table(photographs(), unseen())


def test_it_ships_within_four_megabytes() -> None:
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 4_000_000


def test_transformers_writes_the_same_tokens() -> None:
    """Greedy tokens of 20 pairs, from the same embeddings; needs the extra `bench`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jobs.prompt import build_prompt
    from store.records import Sampling
    from workers.engine import Engine, Row
    from workers.model.load import load_text_model
    from workers.model.rope import position_ids

    images = open_images(PHOTOS, checkpoint())
    pairs = all_pairs(len(images.values))[::7][:20]
    prompt = build_prompt(checkpoint(), load_tokenizer(checkpoint()), PROMPT, thinking=False, grid=images.grid)
    rows = [Row(key, images.embeddings[a], images.embeddings[b], seed=0) for key, (a, b) in enumerate(pairs)]
    ours: list[list[int]] = [[] for _ in pairs]
    for step in Engine(load_text_model(checkpoint()), checkpoint().eos_token_ids).generate(
            prompt, rows, Sampling(do_sample=False, max_tokens=60)):
        for token in step:
            ours[token.key].append(token.id)

    model = transformers.Glm4vForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    ids = torch.tensor([prompt.token_ids])
    start = torch.from_numpy(position_ids(len(prompt.token_ids), prompt.spans, prompt.grid))[:, None].long()
    theirs = []
    with torch.inference_mode():
        for row in rows:
            embeds = model.model.get_input_embeddings()(ids).clone()
            both = np.concatenate([row.image_a, row.image_b]).astype(np.float32)
            embeds[ids == checkpoint().image_token_id] = torch.from_numpy(both)
            position, past, tokens = start, None, []
            while len(tokens) < 60 and (not tokens or tokens[-1] not in checkpoint().eos_token_ids):
                out = model.model.language_model(inputs_embeds=embeds, position_ids=position, past_key_values=past,
                                                 use_cache=True)
                past = out.past_key_values
                tokens.append(int(model.lm_head(out.last_hidden_state[:, -1]).argmax()))
                embeds = model.model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))
                position = (position.max() + 1).expand(3, 1, 1)
            theirs.append(tokens)

    assert ours == theirs
