"""Custom tasks: what the language accepts, that a call is a pure function of its record, and that clipping still bounds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import PreTrainedModel

from fl_privacy.errors import PlanError
from fl_privacy.learning.batches import Features, collate
from fl_privacy.learning.custom_task import CustomTask, problems, rehearse
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import build_model, parameters_of
from fl_privacy.learning.task_language import Program, TaskFailed
from fl_privacy.learning.task_values import LONGEST, TaskTokenizer
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters, norm, specs_of, subtract
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from tests.tiny_model import ROWS, SENTENCES, VOCABULARY, NoNoise, clipped, tiny_bundle, tiny_plan, weights_of

TOKENIZER = tokenizer_of(VOCABULARY)
LENGTH = 40

FIXED_MASKS = """
import torch.nn.functional as F

EVERY = 3

def features(text, tokenizer):
    ids = tokenizer.encode(text)
    labels = [-100] * len(ids)
    for place in range(1, len(ids) - 1, EVERY):
        labels[place] = ids[place]
        ids[place] = tokenizer.mask_token_id
    return {"input_ids": ids, "labels": labels}

def loss(scores, labels):
    return F.cross_entropy(scores, labels)
"""
FEATURES = FIXED_MASKS.partition("def loss")[0]
# Each of these tries, in what the language allows, to carry something from one example to the next.
MIXERS = {
    "in place on what it is given": "labels[0] = 7\n    return F.nll_loss(scores, labels * 0)",
    "a list that grows": "seen = []\n    seen.append(scores)\n    return seen[-1].sum() * len(seen)",
    "a counter": 'd = {"n": 1}\n    d["n"] += 1\n    return scores.sum() * d["n"]',
    "a running sum": "return (scores.softmax(1).cumsum(1) * labels.unsqueeze(1)).mean()",
}


def _run(body: str, argument: Any = 0) -> Any:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return Program(f"import math\nimport torch\ndef f(a):\n{lines}").call("f", argument)


def _model() -> PreTrainedModel:
    return build_model(tiny_bundle().spec, VOCABULARY, weights_of(tiny_bundle()))


def _task(source: str = FIXED_MASKS) -> CustomTask:
    return CustomTask(source, TOKENIZER, LENGTH)


def _example(task: CustomTask, text: str) -> Features:
    return task.features(Row(text=text), np.random.default_rng(0))


def _clipped_sum(task: CustomTask, texts: list[str], bound: float) -> dict[str, Any]:
    model = _model()
    before = parameters_of(model)
    examples = [_example(task, text) for text in texts]
    train_privately(
        model,
        torch.optim.SGD(list(model.parameters()), lr=1.0),
        DPSettings(noise_multiplier=1.0, max_grad_norm=bound, sample_rate=0.5, expected_batch_size=1),
        rows=len(texts),
        steps=1,
        losses=lambda indices: task.loss(model, collate([examples[i] for i in indices], 0)),
        after_step=lambda step: None,
        randomness=NoNoise(),
    )
    return subtract(before, parameters_of(model))


@pytest.mark.parametrize("bound", [0.3, 1e6], ids=["all clipped", "none clipped"])
def test_a_task_that_restates_masked_words_gives_the_gradients_of_one_example_at_a_time(bound: float) -> None:
    texts = [SENTENCES[0], "病人", SENTENCES[11], SENTENCES[37] + SENTENCES[3]]
    model = _model()
    trained = dict(model.named_parameters())
    expected = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in trained.items()}
    for text in texts:  # by plain autograd through the library's whole model, without padding or custom code
        ids = torch.tensor(TOKENIZER(text, truncation=True, max_length=LENGTH)["input_ids"])
        places = torch.arange(1, len(ids) - 1, 3)
        hidden = ids.clone()
        hidden[places] = TOKENIZER.mask_token_id
        loss = functional.cross_entropy(model(input_ids=hidden[None]).logits[0][places], ids[places])
        for name, gradient in zip(trained, clipped(list(torch.autograd.grad(loss, [*trained.values()])), bound), strict=True):
            expected[name] += gradient
    ours = _clipped_sum(_task(), texts, bound)
    size = sum(float((wanted**2).sum()) for wanted in expected.values()) ** 0.5
    wrong = sum(float(((torch.from_numpy(ours[name]) - wanted) ** 2).sum()) for name, wanted in expected.items()) ** 0.5
    assert wrong <= 1e-5 * size + 1e-7 * np.sqrt(sum(wanted.numel() for wanted in expected.values()))
    assert size > 0.1 * min(bound, 1.0)


@pytest.mark.parametrize("body", MIXERS.values(), ids=MIXERS.keys())
def test_one_record_moves_the_clipped_sum_by_at_most_the_bound_whatever_the_loss_tries(body: str) -> None:
    task, texts = _task(FEATURES + "def loss(scores, labels):\n    " + body), [SENTENCES[0], SENTENCES[11], SENTENCES[22]]
    everyone = _clipped_sum(task, texts, 0.5)
    for absent in range(len(texts)):
        without = _clipped_sum(task, texts[:absent] + texts[absent + 1 :], 0.5)
        assert norm(subtract(everyone, without)) <= 0.5 * (1 + 1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=5), st.sampled_from(sorted(MIXERS)))
def test_an_examples_gradient_does_not_depend_on_its_batch_mates(texts: list[str], mixer: str) -> None:
    task, model = _task(FEATURES + "def loss(scores, labels):\n    " + MIXERS[mixer]), _model()
    examples = [_example(task, text) for text in texts]
    weight = model.bert.embeddings.position_embeddings.weight
    together = task.loss(model, collate(examples, 0))
    for index, example in enumerate(examples):
        (among_others,) = torch.autograd.grad(together[index], weight, retain_graph=True)
        (alone,) = torch.autograd.grad(task.loss(model, collate([example], 0))[0], weight)
        assert (among_others - alone).norm() <= 1e-4 * alone.norm() + 1e-6  # padding changes the order of float32 sums


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*SENTENCES, "", "鼠\ud800", "[MASK]"]), min_size=1, max_size=8))
def test_equal_records_have_equal_features_whatever_came_between(texts: list[str]) -> None:
    task = _task()
    first = [_example(task, text) for text in texts]
    for example, text in zip(reversed(first), reversed(texts), strict=True):
        assert all(map(np.array_equal, example, _example(task, text)))


def test_the_task_cannot_change_what_other_examples_use() -> None:
    task = _task(FEATURES + "def loss(scores, labels):\n    labels[0] = 3\n    return scores.sum()")
    scores, labels = torch.randn(4, len(TOKENIZER)), torch.arange(4)
    task.gradient(scores, labels)
    assert labels.tolist() == [0, 1, 2, 3] and not scores.requires_grad


FAILING = {
    "an index that is not there": "return {'input_ids': [ids[99999]], 'labels': [0]}",
    "no dict": "return ids",
    "nothing": "pass",
    "a token that does not exist": "return {'input_ids': [10 ** 6], 'labels': [0]}",
    "a boolean for a token": "return {'input_ids': [True], 'labels': [0]}",
    "a label that does not exist": "return {'input_ids': [1], 'labels': [-1]}",
    "more tokens than the plan's": "return {'input_ids': [1] * 41, 'labels': [0] * 41}",
    "no tokens": "return {'input_ids': [], 'labels': []}",
    "unequal lengths": "return {'input_ids': [1, 2], 'labels': [0]}",
    "a name without a value": "if len(text) < 0:\n        a = 1\n    return a",
    "too much work": "n = 0\n    for i in range(10000):\n        for j in range(10000):\n            n += 1",
    "text that doubles": "for i in range(100):\n        text = text + text",
    "a list that doubles": "for i in range(100):\n        ids.extend(ids)",
    "a repetition": "ids = [0] * 1000000000000",
    "a power": "n = 3\n    for i in range(100):\n        n = n ** 100",
    "a tensor beyond memory": "t = torch.zeros(100000, 100000)",
    "broadcasting beyond memory": "t = torch.arange(16000000)\n    t = t.unsqueeze(0) * t.unsqueeze(1)",
    "a small list that is endless to compare": (
        "a = [1]\n    b = [1]\n    for i in range(90):\n        a = [a, a]\n        b = [b, b]\n    c = a == b"
    ),
    "a list within itself": "ids.append(ids)\n    c = str(ids)",
}


@pytest.mark.parametrize("ending", FAILING.values(), ids=FAILING.keys())
def test_a_failure_on_a_record_contributes_zero_and_tells_nobody(ending: str) -> None:
    source = "import torch\ndef features(text, tokenizer):\n    ids = tokenizer.encode(text)\n    " + ending
    source += "\ndef loss(scores, labels):\n    return scores.sum()\n"
    task = _task(source)
    example = _example(task, "病人" * 20)
    assert not len(example.labels) and example.ids.tolist() == [TOKENIZER.cls_token_id, TOKENIZER.sep_token_id]
    with pytest.raises(TaskFailed):
        task.try_features("病人" * 20, [])


@pytest.mark.parametrize(
    "body",
    [
        "return scores",
        "return 1.0",
        "return scores.detach().sum()",
        "return scores.sum() / 0.0",
        "return (scores.sum() * 0.0) / 0.0",
        "return torch.sqrt(scores.sum() - scores.sum().detach())",  # finite, its gradient is not
        "return scores[10000]",
        "return F.cross_entropy(scores, labels + 10000)",
        "scores[0] = 1.0\n    return scores.sum()",
        "return",
    ],
)
def test_a_loss_that_fails_or_is_not_a_finite_number_has_no_gradient(body: str) -> None:
    task = _task("import torch\n" + FEATURES + f"def loss(scores, labels):\n    {body}\n")
    scores, labels = torch.randn(3, len(TOKENIZER)), torch.arange(3)
    assert not task.gradient(scores, labels).any()
    with pytest.raises(TaskFailed):
        task.try_gradient(scores, labels)


LOOP = """
n = 0
for i, x in enumerate(a):
    if x == 3:
        continue
    if i == 4:
        break
    n += x
return n
"""


@pytest.mark.parametrize(
    ("body", "argument", "result"),
    [
        ("return [x * 2 for x in a if x % 2 == 1]", [1, 2, 3], [2, 6]),
        ("n, m = a\nreturn {'sum': n + m, 'none': n is None}", (1, 2), {"sum": 3, "none": False}),
        (LOOP, [1, 3, 4, 5, 6], 10),
        ("return a.lower().split(' ')[-1]", "To BE", "be"),
        ("return 1 if 0 < a <= 5 and not a == 4 else -1", 3, 1),
        ("return sorted(a, reverse=True)[:2]", [1, 3, 2], [3, 2]),
        ("return math.floor(math.sqrt(a)) // 2", 17, 2),
        ("value, place = torch.tensor(a).max(dim=0)\nreturn [value.item(), place.item()]", [1, 9, 2], [9, 1]),
        ("for x in a:\n    a.append(x)\nreturn len(a)", [1, 2], 4),
    ],
)
def test_the_language_means_what_python_means(body: str, argument: Any, result: Any) -> None:
    assert _run(body, argument) == result


OUTSIDE = {
    "import os": "import os",
    "import a part of torch": "import torch.utils.data as d",
    "import from": "from os import system",
    "relative import": "from . import keys",
    "a class": "class A:\n    pass",
    "a mutable constant": "seen = []",
    "a constant that is computed": "x = 2 ** 100",
    "a default": "def f(a, seen=0):\n    return a",
    "a decorator": "def g(a):\n    return a\n@g\ndef f(a):\n    return a",
    "star arguments": "def f(*a):\n    return a",
    "an inner function": "def f(a):\n    def g():\n        return 1\n    return g()",
    "recursion": "def f(a):\n    return f(a)",
    "a later function": "def f(a):\n    return g(a)\ndef g(a):\n    return a",
    "global": "def f(a):\n    global x\n    x = 1",
    "nonlocal": "def f(a):\n    nonlocal x\n    x = 1",
    "while": "def f(a):\n    while a:\n        pass",
    "try": "def f(a):\n    try:\n        return 1\n    except Exception:\n        return 2",
    "raise": "def f(a):\n    raise ValueError(a)",
    "with": "def f(a):\n    with a:\n        pass",
    "assert": "def f(a):\n    assert a",
    "del": "def f(a):\n    del a[0]",
    "lambda": "def f(a):\n    return sorted(a, key=lambda b: b)",
    "a generator": "def f(a):\n    return sum(b for b in a)",
    "yield": "def f(a):\n    yield a",
    "await": "async def f(a):\n    await a",
    "walrus": "def f(a):\n    return (b := a)",
    "a set, whose order is an address": "def f(a):\n    return {a}",
    "is, which compares addresses": "def f(a):\n    return a is a",
    "an f-string": "def f(a):\n    return f'{a.b}'",
    "format": "def f(a):\n    return '{0.__class__}'.format(a)",
    "a dunder": "def f(a):\n    return a.__class__",
    "an underscore": "def f(a):\n    return a._tokenizer",
    "writing an attribute": "def f(a):\n    a.cache = 1",
    "a method as a value, which shows an address": "def f(a):\n    return str(a.append)",
    "a function as a value": "def f(a):\n    return str(len)",
    "a module as a value": "import torch\ndef f(a):\n    return torch",
    "calling a value": "def f(a):\n    return a()",
    "calling a result": "def f(a):\n    return a[0](1)",
    "star call": "def f(a):\n    return max(*a)",
    "keywords from a dict": "def f(a):\n    return max(**a)",
    "an unknown keyword": "import torch\ndef f(a):\n    return torch.zeros(3, out=a)",
    "hiding a builtin": "def f(len):\n    return 1",
    "hiding a module": "import torch\ndef f(a):\n    torch = a",
    "a name from another script": "def f(\u0430):\n    return 1",
    "bytes": "def f(a):\n    return b'x'",
    "a complex number": "def f(a):\n    return 1j",
    "matrix product": "def f(a):\n    return a @ a",
    "shift": "def f(a):\n    return 1 << a",
    "not python": "def f(:",
    "too deep": "x = " + "-" * 5000 + "1",
}
BUILTINS = """open eval exec compile getattr setattr vars globals print id hash iter next type repr set input super __import__
    format memoryview"""
TORCH = """save load empty empty_like manual_seed rand randn set_num_threads compile from_numpy frombuffer jit ops hub
    as_strided"""
METHODS = """numpy data_ptr backward register_hook requires_grad_ share_memory_ untyped_storage set_ resize_ new_empty
    as_strided to apply_ map_ random_ __class__ __reduce__"""
OUTSIDE |= {f"builtin {name}": f"def f(a):\n    return {name}(a)" for name in BUILTINS.split()}
OUTSIDE |= {f"torch.{name}": f"import torch\ndef f(a):\n    return torch.{name}(a)" for name in TORCH.split()}
OUTSIDE |= {f"method {name}": f"def f(a):\n    return a.{name}()" for name in METHODS.split()}
OUTSIDE |= {f"field {name}": f"def f(a):\n    return a.{name}" for name in ("grad", "data", "grad_fn", "names", "mT")}


@pytest.mark.parametrize("source", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_is_not_listed_is_refused_before_anything_runs(source: str) -> None:
    assert problems(source)
    with pytest.raises(PlanError, match="custom_task, line"):
        CustomTask(source, TOKENIZER, LENGTH)


@pytest.mark.parametrize(
    "body",
    [
        "return '%s' % a",
        "return a.encode('x')",  # a method of the tokenizer, on a text
        "return a.vocab_size",
        "return (0 - 8.0) ** 0.5",  # a complex number
        "return torch.zeros(2).append(1)",
        "return [x for x in torch.zeros(20000)]",
        "return max(torch.zeros(20000))",
        "return torch.zeros(20000).tolist()",
        "return a.max()",
        "return {(1, 2): [(3,)]}[(1, 2)][0][5]",
    ],
)
def test_a_value_of_an_unknown_kind_never_comes_into_being(body: str) -> None:
    with pytest.raises(TaskFailed):
        _run(body, "text")


def test_no_value_shows_an_address() -> None:
    values = [
        "enumerate(a)",
        "zip(a, a)",
        "reversed(a)",
        "range(3)",
        "a",
        "{1: 2}.items()",
        "torch.zeros(2).shape",
        "torch.float32",
    ]
    for value in values:
        assert "0x" not in _run(f"return str({value})", [1, 2])
    assert "0x" not in Program("def f(t):\n    return str([t])").call("f", TaskTokenizer(TOKENIZER, LENGTH))


def test_a_failure_tells_line_and_kind_and_nothing_of_the_record() -> None:
    with pytest.raises(TaskFailed) as told:
        Program("def f(a):\n    b = a\n    return int(b)").call("f", "a secret text")
    assert str(told.value) == "line 3: ValueError" and told.value.__suppress_context__


def test_a_task_needs_both_functions() -> None:
    assert [problem.what for problem in problems("def features(text):\n    return 1")] == ["features", "loss"]
    assert problems(FIXED_MASKS) == ()


def test_a_rehearsal_on_public_texts_tells_what_training_would_keep_quiet() -> None:
    rehearse(FIXED_MASKS, TOKENIZER, LENGTH, SENTENCES[:5])
    with pytest.raises(PlanError, match="line 6: IndexError"):
        rehearse(
            "import math\n\nN = 9\n\ndef features(text, tokenizer):\n    return [][0]\ndef loss(a, b):\n    return a",
            TOKENIZER,
            LENGTH,
            ["x"],
        )


def test_draws_are_fresh_random_numbers_for_each_use() -> None:
    drawn = "def features(text, tokenizer, draws):\n    n = int(draws[0] * 5)\n    return {'input_ids': [n], 'labels': [n]}\n"
    task = _task(drawn + "def loss(scores, labels):\n    return scores.sum()")
    assert task.try_features("x", [0.5] * LENGTH).ids.tolist() == [2]
    assert task.try_features("x", [0.9] * LENGTH).ids.tolist() == [4]
    drawn_ids = {int(task.features(Row(text="x"), np.random.default_rng(seed)).ids[0]) for seed in range(50)}
    assert drawn_ids == {0, 1, 2, 3, 4}


def test_long_records_are_cut_before_the_task_sees_them() -> None:
    task = _task(
        "def features(text, tokenizer):\n    return {'input_ids': [len(text) // 1000], 'labels': [1]}\n"
        "def loss(scores, labels):\n    return scores.sum()"
    )
    assert _example(task, "x" * 3 * LONGEST).ids.tolist() == [LONGEST // 1000]


def test_a_plan_with_a_custom_task_trains_and_learns() -> None:
    bundle = tiny_bundle(initializer_range=0.05)
    fields = {"rounds": 1, "local_steps": 12, "batch_size": 40, "learning_rate": 0.04, "max_grad_norm": 1.0}
    plan = tiny_plan(bundle, task="custom", custom_task=FIXED_MASKS, **fields)
    weights = weights_of(bundle)
    update = train_update(plan, 0, weights, VOCABULARY, ROWS, 75, 0.01, lambda done, steps: None)
    assert [spec.name for spec in specs_of(update)] == sorted(weights)

    def perplexity(parameters: Parameters) -> float:
        return evaluate(plan, build_model(bundle.spec, VOCABULARY, parameters), TOKENIZER, ROWS, 0).summary()["perplexity"]

    assert perplexity({name: weights[name] + update[name] for name in weights}) < 0.8 * perplexity(weights)


def test_an_evaluation_counts_how_often_the_tasks_own_labels_are_guessed() -> None:
    plan, weights = tiny_plan(tiny_bundle(), task="custom", custom_task=FIXED_MASKS), weights_of(tiny_bundle())
    weights = {name: np.zeros_like(array) for name, array in weights.items()}
    weights["cls.predictions.bias"][TOKENIZER.convert_tokens_to_ids("病")] = 50.0
    counts = evaluate(plan, build_model(plan.model, VOCABULARY, weights), TOKENIZER, [Row(text="病人今天病人")], 0)
    assert counts["positions"] == 2  # every third token: 病 and 天
    assert counts.headline == 0.5


def test_a_task_that_fails_on_every_record_releases_noise_only() -> None:
    bundle = tiny_bundle()
    failing = FEATURES + "def loss(scores, labels):\n    return scores[10000]\n"
    update = train_update(
        tiny_plan(bundle, task="custom", custom_task=failing),
        0,
        weights_of(bundle),
        VOCABULARY,
        ROWS,
        80,
        1.0,
        lambda *_: None,
    )
    assert all(array.any() for array in update.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "custom"}, "custom_task: its source is needed"),
        ({"custom_task": "x = 1"}, "custom_task: its source is needed"),
        ({"task": "custom", "custom_task": "x = 1 # \u202e"}, "custom_task: only printable"),
        ({"task": "custom", "custom_task": "x = 1 \x1b[2J"}, "custom_task: only printable"),
        ({"task": "custom", "custom_task": "x" * 10_001}, "custom_task"),
    ],
)
def test_a_plan_holds_a_custom_task_that_can_be_read_or_none(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        tiny_plan(tiny_bundle(), **changes)


def test_the_custom_task_is_part_of_what_is_approved() -> None:
    one, two = (tiny_plan(tiny_bundle(), task="custom", custom_task=FIXED_MASKS + end) for end in ("", "# another\n"))
    assert one.digest() != two.digest()
