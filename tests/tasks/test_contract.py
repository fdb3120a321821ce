"""What the training and the evaluation ask of every task, for each kind of data."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from isoconv.data import KINDS, Split
from isoconv.data import Task as DataInfo
from isoconv.evaluation.measuring import measure
from isoconv.evaluation.protocols import conditions
from isoconv.models import create_model, list_models
from isoconv.runs import OnImages
from isoconv.tasks import TASKS, Task, facts, task_of
from isoconv.tasks.scores import Score

IMAGES, SIDE = 24, 9
LABELS = ("a", "b, c", "d")


class Case(NamedTuple):
    """A small data set: facts, images, targets, and outputs that are all right and all wrong."""

    task: Task
    images: Tensor
    targets: Tensor
    right: Tensor
    wrong: Tensor


Made = tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]
"""Targets, others that are all wrong, and what makes outputs of either."""


def one_class(classes: int) -> Made:
    targets = torch.arange(IMAGES) % classes
    return targets, (targets + 1) % classes, lambda t: 6 * F.one_hot(t, classes).float()


def several_labels(classes: int) -> Made:
    numbers = 1 + torch.arange(IMAGES) % (2**classes - 2)  # neither no label nor all of them
    targets = torch.stack([numbers >> i & 1 for i in range(classes)], 1)
    return targets, 1 - targets, lambda t: 6.0 * t - 3


def one_class_per_pixel(classes: int) -> Made:
    targets = torch.randint(classes, (IMAGES, SIDE, SIDE)).to(torch.uint8)
    return targets, (targets + 1) % classes, lambda t: 6 * F.one_hot(t.long(), classes).movedim(-1, 1).float()


def numbers(targets: int) -> Made:
    values = torch.randn(IMAGES, targets)
    return values, values + 2, lambda t: t.clone()


MADE = {
    **dict.fromkeys(("multiclass", "binary", "ordinal"), one_class),
    "multilabel": several_labels,
    "segmentation": one_class_per_pixel,
    "regression": numbers,
}
"""By the kind of data; a new kind needs an entry here, and no test of its own for what is asked of all."""


@pytest.fixture(params=[kind for task in TASKS.values() for kind in task.kinds])
def tiny(request: pytest.FixtureRequest) -> Case:
    labels = LABELS[:2] if request.param == "binary" else LABELS
    info = DataInfo("tiny", "Tiny", request.param, 2, 1, labels, (0, 0, IMAGES), "MIT")
    targets, others, outputs = MADE[request.param](len(labels))
    return Case(task_of(info), torch.rand(IMAGES, 1, SIDE, SIDE), targets, outputs(targets), outputs(others))


def records(tiny: Case, *outputs: Tensor) -> Tensor:
    """Of some positions, the first of which is upright."""
    upright = tiny.task.decision(outputs[0])
    return torch.stack([tiny.task.record(each, tiny.targets, upright) for each in outputs])


def is_json(value: Any) -> bool:
    return json.loads(json.dumps(value, allow_nan=False)) == value


def better(score: Score, a: float, b: float) -> bool:
    return score.sign * a > score.sign * b


# What it is


def test_every_kind_of_data_has_one_task() -> None:
    assert {name: task.kinds for name, task in TASKS.items()} == dict(KINDS)
    assert all(name == task.name for name, task in TASKS.items())


def test_a_run_directory_keeps_what_rebuilds_it(tiny: Case) -> None:
    kept = facts(tiny.task)
    assert json.loads(json.dumps(kept))["labels"] == list(tiny.task.info.labels)
    again = task_of(json.loads(json.dumps(kept)))
    assert type(again) is type(tiny.task)
    assert facts(again) == kept


def test_scores_have_keys_of_their_own(tiny: Case) -> None:
    task = tiny.task
    assert task.scores[: len(task.of_main)] == task.of_main
    assert len({score.key for score in task.scores}) == len(task.scores)
    assert {score.higher_is_better for score in task.of_main} == {task.main.higher_is_better}


def test_there_are_networks_and_options_for_images_and_volumes(tiny: Case) -> None:
    task = tiny.task
    for dims in (2, 3):
        assert list_models(dims=dims, task=task.networks)
        assert min(task.defaults.batch_size[dims], task.evaluation_batch[dims]) >= 1
        assert task.defaults.lr[dims] > 0


def test_the_words_say_how_outputs_are_read(tiny: Case) -> None:
    wording = tiny.task.wording
    assert "volumes" in wording.does.format(images="volumes")
    names: dict[str, Any] = {"outputs": tiny.right}
    exec(wording.code.format(outputs="outputs"), names)
    read = next(value for name, value in names.items() if name not in ("outputs", "__builtins__"))
    assert read.shape == tiny.right.shape
    assert tiny.task.output_shape.startswith(f"(N, {tiny.right.shape[1]}")
    assert tiny.task.output_shape.count(",") == tiny.right.dim() - 1


# Training


def test_losses_fall_towards_the_right_outputs(tiny: Case) -> None:
    for name, loss in tiny.task.losses.items():
        outputs = tiny.wrong.clone().requires_grad_()
        value = loss(outputs, tiny.targets)
        assert value.shape == (), name
        (gradient,) = torch.autograd.grad(value, outputs)
        assert gradient.isfinite().all(), name
        assert loss(outputs - 1e-2 * gradient / gradient.norm(), tiny.targets) < value, name
        assert loss(tiny.right, tiny.targets) < value, name


def test_a_loss_by_name(tiny: Case) -> None:
    first, *others = tiny.task.losses
    assert tiny.task.loss_name(None) == first
    assert [tiny.task.loss_name(name) for name in others] == others
    with pytest.raises(ValueError, match=f"must be one of {first}.*, got '{first[:-1]}'; did you mean '{first}'"):
        tiny.task.loss_name(first[:-1])


def test_a_step_of_training_reaches_every_weight(tiny: Case) -> None:
    task, (name, *_) = tiny.task, list_models(dims=2, task=tiny.task.networks)
    model = create_model(name, 1, task.info.num_outputs, width=2)
    for key, loss in task.losses.items():
        for step in (0, 1):
            model.zero_grad()
            task.training_loss(model, loss, tiny.images, tiny.targets, step).backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), (key, step)
            assert any(p.grad.any() for p in model.parameters()), (key, step)
        assert task.validation_loss(model, loss, tiny.right, tiny.targets).isfinite()


def test_the_scale_of_outputs_fits_them(tiny: Case) -> None:
    scaled = tiny.task.output_scale(tiny.targets)
    if scaled is not None:
        assert is_json([*scaled])
        assert OnImages(torch.nn.Identity(), False, scaled)(tiny.right).shape == tiny.right.shape


def test_epochs_are_ordered_by_their_lines(tiny: Case) -> None:
    task = tiny.task
    lines = []
    for outputs in (tiny.right, tiny.wrong):
        scores = task.validation(task.record(outputs, tiny.targets), tiny.targets)
        assert scores
        assert all(name.startswith("val_") for name in scores)
        lines.append({"val_loss": 1.0, **scores})
    assert is_json(lines)
    good, bad = map(task.goodness, lines)
    assert good > bad
    assert good > task.goodness({**lines[0], "val_loss": 2.0})
    assert task.summary(lines[0]) != task.summary(lines[1])


# Records


def test_what_is_recorded_is_accepted_when_it_is_read_back(tiny: Case) -> None:
    kept, targets = records(tiny, tiny.right, tiny.wrong), tiny.task.identity(tiny.targets)
    assert kept.shape[:2] == (2, IMAGES)
    assert kept.dim() >= 3
    assert len(targets) == IMAGES
    assert tiny.task.check_records(kept.numpy(), targets.numpy()) is None
    assert not torch.equal(targets, tiny.task.identity(tiny.targets.roll(1, 0)))


def test_images_alone_have_agreements(tiny: Case) -> None:
    """Those that they have with their targets, which an image to be answered has not."""
    task, outputs = tiny.task, (tiny.right, tiny.right.roll(1, 0))
    unknown = task.no_targets(tiny.images)
    assert unknown.shape == tiny.targets.shape
    assert unknown.is_floating_point() == tiny.targets.is_floating_point()
    blind = records(tiny._replace(targets=unknown), *outputs)
    assert torch.equal(task.agreements(blind), task.agreements(records(tiny, *outputs)))


# Scores


def test_a_row_for_each_position(tiny: Case) -> None:
    task = tiny.task
    rows, resampled = task.table(records(tiny, tiny.right, tiny.right, tiny.wrong), tiny.targets)
    assert is_json(rows)
    assert resampled.shape[1:] == (3,)
    assert len(resampled) >= 200
    assert resampled.dtype == torch.float64
    assert torch.equal(resampled[:, 0], resampled[:, 1])  # the same draws in each position
    for row in rows:
        assert {score.key for score in (task.main, *task.others)} <= row.keys()
        for name in (name for name in row if name.endswith("_ci") and isinstance(row[name], list)):
            low, high = row[name]
            assert low - 1e-9 <= row[name.removesuffix("_ci")] <= high + 1e-9
    for score in (task.main, *task.others):
        assert better(score, rows[0][score.key], rows[2][score.key]), score.key


def test_the_bootstrap_is_paired_with_that_of_another_network(tiny: Case) -> None:
    _, one = tiny.task.table(records(tiny, tiny.right, tiny.wrong), tiny.targets)
    _, other = tiny.task.table(records(tiny, tiny.wrong, tiny.right), tiny.targets)
    assert torch.equal(one, other.flip(1))


def test_the_upright_answers_agree_with_themselves(tiny: Case) -> None:
    task, score = tiny.task, tiny.task.agreement
    agreements = task.agreements(records(tiny, tiny.right, tiny.right, tiny.wrong))
    assert (agreements.shape, agreements.dtype) == ((3, IMAGES), torch.float64)
    assert agreements.isfinite().all()
    assert torch.equal(agreements[0], agreements[1])
    assert (score.sign * agreements[0] > score.sign * agreements[2]).all()
    assert len(agreements[0].unique()) == 1


def test_each_image_has_a_score(tiny: Case) -> None:
    task = tiny.task
    each = task.by_image(records(tiny, tiny.right, tiny.wrong), tiny.targets)
    assert (each.shape, each.dtype) == ((2, IMAGES), torch.float64)
    assert (task.main.sign * each[0] > task.main.sign * each[1]).all()
    some = tiny.right.clone()
    some[:6] = tiny.wrong[:6]
    few = task.by_image(records(tiny, tiny.right, some), tiny.targets)
    assert (few[0] != few[1]).nonzero().flatten().tolist() == list(range(6))


def test_what_else_is_told_is_json(tiny: Case) -> None:
    positions = conditions("official", 2)[:3]
    kept = records(tiny, tiny.right, tiny.wrong, tiny.right)
    rows, _ = tiny.task.table(kept, tiny.targets)
    assert is_json(tiny.task.over_turns(kept, tiny.targets))
    assert is_json(tiny.task.details(kept, tiny.targets, positions, rows))
    assert tiny.task.notes(kept[0], tiny.targets) == []


class Sums(torch.nn.Module):
    """Sees the place of what is bright: an image that turns gets other outputs."""

    def __init__(self, tiny: Case) -> None:
        super().__init__()
        self.outputs, self.per_pixel = tiny.right.shape[1], tiny.right.dim() > 2

    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.arange(self.outputs * SIDE * SIDE).view(self.outputs, SIDE, SIDE).sin()
        products = images * ramp
        return products if self.per_pixel else products.mean((2, 3))


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_an_evaluation_has_all_scores(tiny: Case, protocol: str) -> None:
    task, split = tiny.task, Split((255 * tiny.images).to(torch.uint8), tiny.targets)
    values, kept, targets = measure(Sums(tiny), task, split, protocol)
    assert is_json(values)
    positions = conditions(protocol, 2)
    assert kept.shape[:2] == (len(positions), IMAGES)
    assert task.check_records(kept.numpy(), targets.numpy()) is None
    assert [score.key for score in task.scores if values["summary"].get(score.key) is None] == []
    assert all(math.isfinite(row[task.agreement.key]) for row in values["conditions"])
    turned = [row[task.main.key] for row in values["conditions"] if row["group"] == "rotation"]
    worst = min(turned) if task.main.higher_is_better else max(turned)
    assert values["summary"]["rotated_worst"] == pytest.approx(worst, abs=1e-4)
    best = task.agreement.sign * values["conditions"][0][task.agreement.key]
    assert best > task.agreement.sign * values["summary"][task.agreement.key]


# Pairs


def test_a_network_compared_with_itself(tiny: Case) -> None:
    task, kept = tiny.task, records(tiny, tiny.right, tiny.wrong, tiny.right)
    tests = task.paired(*(task.prepared(kept, tiny.targets) for _ in range(2)))
    assert is_json(tests)
    assert tests["rotated_mean_difference_ci"] == [0, 0]
    assert all(value == 1 for name, value in tests.items() if name.endswith("_p"))
    assert {"upright_p", "rotated_mean_p"} <= tests.keys()


def test_a_better_network_is_told_from_a_worse_one(tiny: Case) -> None:
    task = tiny.task
    good, bad = (task.prepared(records(tiny, *[each] * 3), tiny.targets) for each in (tiny.right, tiny.wrong))
    tests, turned = task.paired(good, bad), task.paired(bad, good)
    assert is_json(tests)
    assert tests["upright_p"] == pytest.approx(turned["upright_p"], abs=0.01)
    assert max(tests["upright_p"], tests["rotated_mean_p"]) < 0.01
    for name in (name for name in tests if name.endswith("_ci")):
        low, high = (task.main.sign * end for end in sorted(tests[name], key=lambda end: task.main.sign * end))
        assert 0 < low <= high
        assert turned[name] == pytest.approx([-end for end in reversed(tests[name])])


# Answers


def test_an_answer_for_each_image(tiny: Case) -> None:
    task = tiny.task
    answers = task.answers(tiny.right)
    assert len(answers) == IMAGES
    assert {"mask" in answer for answer in answers} == {task.answers_with_masks}
    assert is_json([{name: value for name, value in answer.items() if name != "mask"} for answer in answers])
    for answer in answers:
        if "mask" in answer:
            assert isinstance(answer["mask"], np.ndarray)
            assert answer["mask"].dtype == np.uint8
        cells, shown = task.columns(answer), task.shown(answer)
        assert cells.keys() == task.columns(answers[0]).keys()
        assert shown.keys() == task.shown(answers[0]).keys()
        assert all(isinstance(cell, str | int | float) for cell in cells.values())
        assert all(cell is None or isinstance(cell, str) for cell in shown.values())
    other = task.answers(tiny.wrong)
    assert all(task.shown(a) != task.shown(b) for a, b in zip(answers, other, strict=True))


def test_what_answers_have_is_described(tiny: Case) -> None:
    task = tiny.task
    for answer in task.answers(tiny.right):
        assert answer.keys() == {*task.answer_fields, *(["mask"] if task.answers_with_masks else [])}
    assert all(words for _, words in task.answer_fields.values())


def test_the_numbers_of_an_answer(tiny: Case) -> None:
    task = tiny.task
    assert len({reading.key for reading in task.readings}) == len(task.readings)
    for answer, other in zip(task.answers(tiny.right), task.answers(tiny.wrong), strict=True):
        numbers = task.read(answer)
        assert len(numbers) == len(task.readings)
        assert all(isinstance(value, float) and math.isfinite(value) for value in numbers)
        assert numbers != task.read(other)


def test_an_answer_in_words(tiny: Case) -> None:
    task = tiny.task
    right, wrong = ([task.said(answer) for answer in task.answers(outputs)] for outputs in (tiny.right, tiny.wrong))
    told = [task.told(target) for target in tiny.targets]
    assert all(isinstance(each, str) for each in told)
    if any(right):
        assert right == told
        assert not any(a == b for a, b in zip(right, wrong, strict=True))


def test_curves_of_an_image_that_turns(tiny: Case) -> None:
    task = tiny.task
    for upright, turned in zip(task.answers(tiny.right), task.answers(tiny.wrong), strict=True):
        still, moved = task.curves(upright, upright, 1.0), task.curves(turned, upright, 0.25)
        assert [score for score, _ in still] == [score for score, _ in moved]
        assert len({score.title for score, _ in still}) == len(still) > 0
        assert still != moved


@pytest.mark.parametrize("count", [1, 2, 4])
def test_some_images_stand_for_all(tiny: Case, count: int) -> None:
    chosen = tiny.task.examples(tiny.targets, count)
    assert 1 <= len(chosen) <= count
    assert len(set(chosen)) == len(chosen)
    assert all(0 <= number < IMAGES for number in chosen)


def test_records_of_turns_have_a_mean_if_the_task_says_so(tiny: Case) -> None:
    if tiny.task.averages:
        kept = records(tiny, tiny.right, tiny.wrong)
        assert torch.allclose(kept.mean(0), records(tiny, (tiny.right + tiny.wrong) / 2)[0])


def test_the_main_score_is_the_mean_of_those_of_images_unless_the_task_says_otherwise(tiny: Case) -> None:
    some = tiny.right.clone()
    some[:6] = tiny.wrong[:6]
    kept = records(tiny, tiny.right, some)
    (_, row), _ = tiny.task.table(kept, tiny.targets)
    mean = tiny.task.by_image(kept, tiny.targets)[1].mean().item()
    assert (row[tiny.task.main.key] == pytest.approx(mean)) is not tiny.task.pooled
