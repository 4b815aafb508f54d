"""One pair, now: what is said where the model breaks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from jobs.enqueue import Request, plan_run, record_run
from jobs.inputs import Settings
from store.database import Database, open_database
from store.errors import WeightsError
from store.records import Sampling
from workers import session, single
from workers.attempt import Workplace
from workers.model.load import load_text_model
from workers.report import Reporter
from workers.session import Session
from workers.single import OnePair, replay
from workers.stop import Stop
from workers.tasks import compare_job

SETTINGS = Settings(Path("embeddings_512"), Path("vision_weights"), "Compare these two images.", False,
                    Sampling(max_tokens=24, do_sample=False))
FOURTH = 443      # the fourth token of pair 0,1; pair 0,2 has none like it
BROKEN = ("expected finite logits, found: the model's logits are infinite or not a number for this pair; its "
          "embeddings are finite, so look with `diptych doctor --verify` whether the weights in vision_weights are "
          "intact")


@pytest.fixture
def database(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.chdir(workspace)
    with open_database("results.db", create=True) as opened:
        yield opened


@pytest.fixture
def break_models(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let models that are loaded from now on give what is no number in the step that runs the fourth token."""

    def load(*args: object) -> object:
        model = load_text_model(*args)
        weight = np.array(model.embed_tokens.weight)      # [vocab, hidden]
        weight[FOURTH] = np.nan
        model.embed_tokens.weight = mx.array(weight)
        return model

    def break_models() -> None:
        for module in (session, single):
            monkeypatch.setattr(module, "load_text_model", load)

    return break_models


def make_session(database: Database) -> Session:
    return Session(database, weights=None, embeds=None, reporter=Reporter())


@pytest.mark.usefixtures("database")
def test_a_pair_that_breaks_the_model_is_an_error_behind_the_text_so_far(break_models: Callable[[], None]) -> None:
    whole, said = list(OnePair(SETTINGS, 0, 1, seed=1).stream()), list[str]()
    break_models()

    with pytest.raises(WeightsError) as error:
        said.extend(OnePair(SETTINGS, 0, 1, seed=1).stream())

    assert said == whole[:4]
    assert str(error.value) == f"pair 0,1 (000.png, 001.png): {BROKEN}"


def test_a_replay_that_breaks_the_model_is_an_error_and_no_difference(
    database: Database, break_models: Callable[[], None]
) -> None:
    run = record_run(database, plan_run(Request(SETTINGS, Path("pairs.txt"), None, 5, 8, None, ())))
    compare_job(Workplace(database, make_session(database), Stop(), Reporter(), "tester", "cpu"), run.id, 0)
    break_models()

    with pytest.raises(WeightsError) as error:
        replay(database, make_session(database), run, 0)

    assert str(error.value).startswith(f"run {run.id} position 0, pair 0,1: expected finite logits, found: ")
    assert replay(database, make_session(database), run, 2).first_difference is None
