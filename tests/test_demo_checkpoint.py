"""The checkpoint that ships: what it says about images that it has never seen, measured on the file itself."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate import (
    LIMITS,
    UNSEEN_PAIRS,
    Images,
    Pairs,
    Score,
    all_pairs,
    make_rows,
    open_images,
    open_unseen,
    score,
    table,
)
from properties import NAMES, PROMPT, PROPERTIES, Property, question, read_answer

from jobs.prompt import Prompt, build_prompt
from jobs.tokenizer import load_tokenizer
from store.checkpoint import Checkpoint, open_checkpoint
from store.demo import PHOTOS, WEIGHTS
from store.records import Sampling
from workers.engine import Engine
from workers.images import patches, read_image
from workers.model.load import load_text_model
from workers.model.rope import position_ids

README = Path(__file__).parent.parent / "examples" / "demo" / "README.md"
KEPT, EACH, ALL = 0.60, 0.90, 0.95      # share of pairs beyond a margin; of them right, for each property and over all


@cache
def checkpoint() -> Checkpoint:
    return open_checkpoint(WEIGHTS)


@cache
def photograph_images() -> Images:
    return open_images(PHOTOS, checkpoint())


@cache
def photographs() -> Score:
    images = photograph_images()
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


@pytest.mark.parametrize("asked", PROPERTIES, ids=NAMES)
def test_to_a_question_it_answers_the_label_alone(asked: Property) -> None:
    images = photograph_images()
    answers = write(images, all_pairs(len(images.values))[::3], question(asked))

    labels = [load_tokenizer(checkpoint()).encode(label) for label in ("A", "B")]
    assert all(ids[:-1] in labels and ids[-1] in checkpoint().eos_token_ids for ids in answers)
    assert {tuple(ids[:-1]) for ids in answers} == {tuple(ids) for ids in labels}


def test_each_long_answer_ends_by_itself() -> None:
    answers = write(photograph_images(), all_pairs(13)[::5], PROMPT)

    assert all(ids[-1] in checkpoint().eos_token_ids for ids in answers)
    assert all(15 <= len(ids) <= 40 for ids in answers)


def write(images: Images, pairs: Pairs, text: str) -> list[list[int]]:
    """Return the tokens that the engine writes about each pair, greedily."""
    prompt = build_prompt(checkpoint(), load_tokenizer(checkpoint()), text, thinking=False, grid=images.grid)
    written: list[list[int]] = [[] for _ in pairs]
    engine = Engine(load_text_model(checkpoint()), checkpoint().eos_token_ids)
    for step in engine.generate(prompt, make_rows(images, pairs), Sampling(do_sample=False, max_tokens=60), LIMITS):
        for token in step:
            written[token.key].append(token.id)
    return written


def test_the_table_in_its_readme_is_what_the_script_makes() -> None:
    shown = re.search(r"<!-- results -->\n(.*?)\n<!-- end of results -->", README.read_text(), re.DOTALL)

    assert shown
    assert shown[1] == table(photographs(), unseen())


def test_it_ships_within_four_megabytes() -> None:
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 4_000_000


def test_transformers_writes_the_same_tokens() -> None:
    """Prompt, embeddings of squashed photographs and greedy tokens of 20 pairs; needs the extra `bench`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    images = photograph_images()
    pairs = all_pairs(len(images.values))[::7][:20]
    prompt = build_prompt(checkpoint(), load_tokenizer(checkpoint()), PROMPT, thinking=False, grid=images.grid)
    model = transformers.Glm4vForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(WEIGHTS)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": PROMPT}]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                             add_generation_prompt=True, enable_thinking=False,
                                             chat_template=checkpoint().chat_template)
    repeated = rendered.replace("<|image|>", "<|image|>" * images.embeddings.shape[1])
    assert tokenizer(repeated, add_special_tokens=False).input_ids == list(prompt.token_ids)

    with torch.inference_mode():
        assert np.abs(their_embeddings(torch, model) - images.embeddings).max() < 2e-2      # float16 beside float32
        theirs = [their_tokens(torch, model, prompt, images.embeddings[pair]) for pair in pairs]
    assert write(images, pairs, PROMPT) == theirs


def their_embeddings(torch: Any, model: Any) -> np.ndarray:
    """Embed the photographs, squashed as ours are, by transformers' vision tower."""
    config = checkpoint().image
    pixels = np.stack([read_image(path, config.side, "squash") for path in sorted(PHOTOS.glob("*.jpg"))])
    side = config.side // config.patch_size
    grid = torch.tensor([[1, side, side]] * len(pixels))
    out = model.model.get_image_features(torch.from_numpy(patches(pixels, config)).flatten(0, 1), grid)
    out = getattr(out, "pooler_output", out)
    return torch.stack(list(out)).numpy()


def their_tokens(torch: Any, model: Any, prompt: Prompt, embeddings: np.ndarray) -> list[int]:
    """Generate greedily with transformers' decoder about two images [2, tokens, hidden]."""
    ids = torch.tensor([prompt.token_ids])
    position = torch.from_numpy(position_ids(len(prompt.token_ids), prompt.spans, prompt.grid))[:, None].long()
    hidden = model.model.get_input_embeddings()(ids).clone()
    hidden[ids == checkpoint().image_token_id] = torch.from_numpy(np.concatenate(embeddings).astype(np.float32))
    past, tokens = None, []
    while len(tokens) < 60 and (not tokens or tokens[-1] not in checkpoint().eos_token_ids):
        out = model.model.language_model(inputs_embeds=hidden, position_ids=position, past_key_values=past,
                                         use_cache=True)
        past = out.past_key_values
        tokens.append(int(model.lm_head(out.last_hidden_state[:, -1]).argmax()))
        hidden = model.model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))
        position = (position.max() + 1).expand(3, 1, 1)
    return tokens
