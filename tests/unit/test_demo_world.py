"""The demo model's world: what is drawn, what is said about it, and what is seen in it."""

import random

import numpy as np
import pytest

from tools.demo_model.captions import exact_caption, training_caption, vocabulary
from tools.demo_model.evaluator import look_at
from tools.demo_model.render import render_clip
from tools.demo_model.world import (
    ANCHORS,
    BACKGROUNDS,
    COLORS,
    FRAME_COUNT,
    MOTIONS,
    SHAPES,
    Scene,
    all_scenes,
    held_out_scenes,
    is_held_out,
    pose_at,
    training_scenes,
)


def scene(**changes: str) -> Scene:
    plain = {
        "color": "red",
        "shape": "square",
        "motion": "left",
        "size": "big",
        "background": "white",
    }
    return Scene(**{**plain, **changes})


def clip_of(item: Scene, place: int = 0) -> np.ndarray:
    return render_clip(item, ANCHORS[item.motion][place])


def test_world_is_as_large_as_promised():
    assert (len(COLORS), len(SHAPES), len(MOTIONS), len(BACKGROUNDS)) >= (8, 4, 8, 4)
    assert len(list(all_scenes())) == 8 * 2 * 4 * (4 * 9 - 1)


def test_nothing_is_asked_that_cannot_be_seen():
    with pytest.raises(ValueError, match="circle cannot be seen spinning"):
        scene(shape="circle", motion="spinning")
    with pytest.raises(ValueError, match="color must be one of red"):
        scene(color="mauve")


def test_held_out_scenes_are_never_trained_on_and_cover_every_kind():
    held_out = held_out_scenes(200)
    assert len(set(held_out)) == 200
    assert not set(held_out) & set(training_scenes())
    assert {item.motion for item in held_out} == set(MOTIONS)
    assert {item.shape for item in held_out} == set(SHAPES)
    assert 0.05 < sum(map(is_held_out, all_scenes())) / 2240 < 0.15


@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_stay_inside_the_picture(motion):
    for place in range(len(ANCHORS[motion])):
        for shape in ("square", "triangle", "star"):
            clip = clip_of(scene(motion=motion, shape=shape), place)
            ground = np.asarray(BACKGROUNDS["white"])
            rim = [clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]]
            assert all((edge == ground).all() for edge in rim)


def test_evaluator_sees_every_kind_of_scene_rightly():
    rng = random.Random(5)
    for motion in MOTIONS:
        for shape in SHAPES:
            if shape == "circle" and motion == "spinning":
                continue
            item = scene(
                motion=motion,
                shape=shape,
                color=rng.choice(list(COLORS)),
                size=rng.choice(["small", "big"]),
                background=rng.choice(list(BACKGROUNDS)),
            )
            sight = look_at(clip_of(item, rng.randrange(3)))
            assert all(sight.agrees(item).values()), (item, sight)
            assert sight.stray_share == 0.0
            assert sight.background_sigma == 0.0


def test_evaluator_tells_a_clip_played_backwards():
    assert look_at(clip_of(scene(motion="left"))[::-1]).motion == "right"
    assert look_at(clip_of(scene(motion="growing"))[::-1]).motion == "shrinking"


def test_evaluator_sees_no_shape_in_noise_and_no_object_on_an_empty_ground():
    noise = np.random.default_rng(1).integers(0, 256, (FRAME_COUNT, 96, 128, 3), dtype=np.uint8)
    assert look_at(noise).shape == "none"
    empty = np.full((FRAME_COUNT, 96, 128, 3), 240, dtype=np.uint8)
    seen = look_at(empty)
    assert (seen.color, seen.shape, seen.motion) == ("none", "none", "none")


def test_evaluator_measures_stray_pixels_and_noise():
    clip = clip_of(scene(motion="still")).copy()
    clip[:, 5:15, 5:15] = (0, 0, 0)
    assert look_at(clip).stray_share == pytest.approx(100 / (96 * 128))
    grain = np.random.default_rng(2).normal(0, 8, clip.shape)
    noisy = np.clip(clip_of(scene(motion="still")) + grain, 0, 255).astype(np.uint8)
    assert 5 < look_at(noisy).background_sigma < 9


def test_objects_advance_a_whole_cell_or_half_of_one_per_latent_frame():
    for motion, step in (("left", (-16, 0)), ("right", (16, 0)), ("up", (0, -8)), ("down", (0, 8))):
        item = scene(motion=motion)
        for frame in range(0, 16, 4):
            here, there = (pose_at(item, (64, 48), at) for at in (frame, frame + 4))
            assert (there.x_px - here.x_px, there.y_px - here.y_px) == step


def test_captions_name_what_they_say_and_repeat_for_a_seed():
    item = scene(motion="spinning", color="purple")
    english = exact_caption(item, random.Random(3), chinese=False)
    assert english.isascii()
    assert any(word in english for word in ("purple", "violet"))
    chinese = exact_caption(item, random.Random(3), chinese=True)
    assert "紫" in chinese
    assert training_caption(item, random.Random(4)) == training_caption(item, random.Random(4))


def test_every_word_of_every_caption_is_in_the_vocabulary():
    known = set(vocabulary())
    rng = random.Random(6)
    for item in rng.sample(list(all_scenes()), 300):
        for chinese in (False, True):
            caption = exact_caption(item, rng, chinese=chinese)
            words = [c for c in caption if not c.isascii()] + "".join(
                c if c.isascii() else " " for c in caption
            ).replace(",", " ").split()
            assert set(words) <= known, caption
