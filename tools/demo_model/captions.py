"""Says in words what a scene shows, in English and Chinese, in many wordings."""

import random
from typing import Final

from tools.demo_model.world import Scene

_EN: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "color": {
        "red": ("red", "red", "crimson", "scarlet"),
        "orange": ("orange", "orange", "amber"),
        "yellow": ("yellow", "yellow", "golden"),
        "green": ("green", "green", "emerald"),
        "cyan": ("cyan", "cyan", "turquoise", "aqua"),
        "blue": ("blue", "blue", "azure"),
        "purple": ("purple", "purple", "violet"),
        "pink": ("pink", "pink", "rose"),
    },
    "shape": {
        "circle": ("circle", "ball", "ball", "disc", "dot"),
        "square": ("square", "square", "box", "block", "cube"),
        "triangle": ("triangle", "triangle", "pyramid"),
        "star": ("star",),
    },
    "size": {"small": ("small", "small", "little", "tiny"), "big": ("big", "large", "huge")},
    "motion": {
        "left": ("moving left", "moving to the left", "going left", "sliding to the left"),
        "right": ("moving right", "moving to the right", "going right", "sliding to the right"),
        "up": ("moving up", "rising", "going up", "moving upwards"),
        "down": ("moving down", "falling", "going down", "moving downwards"),
        "bouncing": ("bouncing", "bouncing up and down", "jumping", "hopping"),
        "spinning": ("spinning", "rotating", "turning", "spinning around"),
        "growing": ("growing", "getting bigger", "expanding", "becoming larger"),
        "shrinking": ("shrinking", "getting smaller", "contracting", "becoming smaller"),
        "still": ("standing still", "still", "not moving", "resting"),
    },
    "background": {
        "white": ("white",),
        "black": ("black",),
        "grey": ("grey", "gray"),
        "brown": ("brown",),
    },
}
_ZH: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "color": {
        "red": ("红色", "红"),
        "orange": ("橙色", "橘色"),
        "yellow": ("黄色", "黄"),
        "green": ("绿色", "绿"),
        "cyan": ("青色",),
        "blue": ("蓝色", "蓝"),
        "purple": ("紫色", "紫"),
        "pink": ("粉色", "粉红色"),
    },
    "shape": {
        "circle": ("圆形", "圆", "球", "圆球"),
        "square": ("正方形", "方块", "方形"),
        "triangle": ("三角形",),
        "star": ("星星", "五角星", "星形"),
    },
    "size": {"small": ("小", "小小的"), "big": ("大", "大大的", "巨大的")},
    "motion": {
        "left": ("向左移动", "往左移动", "向左走"),
        "right": ("向右移动", "往右移动", "向右走"),
        "up": ("向上移动", "往上移动", "上升"),
        "down": ("向下移动", "往下移动", "下落"),
        "bouncing": ("弹跳", "跳动", "上下跳动"),
        "spinning": ("旋转", "转动", "转圈"),
        "growing": ("变大", "长大", "放大"),
        "shrinking": ("变小", "缩小"),
        "still": ("静止", "不动", "静止不动"),
    },
    "background": {
        "white": ("白色",),
        "black": ("黑色",),
        "grey": ("灰色",),
        "brown": ("棕色", "褐色"),
    },
}
# An attribute that a caption leaves out is the model's own choice, drawn by the seed.
_LEFT_OUT: Final = {"color": 0.03, "shape": 0.03, "size": 0.2, "motion": 0.04, "background": 0.2}
_EMPTY: Final = 0.08
_ALL_UNKNOWN: Final = 0.02
_ONE_UNKNOWN: Final = 0.08
_SECOND_OBJECT: Final = 0.1
_CHINESE: Final = 0.35
_UNKNOWN_WORD: Final = "qqq"  # in no wording, so the tokenizer maps it to its unknown token


def _english(words: dict[str, str], rng: random.Random) -> str:
    noun = words.get("shape", rng.choice(("thing", "object", "shape")))
    adjectives = [words[name] for name in ("size", "color") if name in words]
    article = "an" if (adjectives or [noun])[0][0] in "aeiou" else "a"
    article = rng.choice((article, article, article, "the", ""))
    thing = " ".join(part for part in (article, *adjectives, noun) if part)
    motion, ground = words.get("motion"), words.get("background")
    place = ""
    if ground is not None:
        article = rng.choice(("a", "a", "the"))
        place = rng.choice(
            (
                f"on {article} {ground} background",
                f"over {article} {ground} background",
                f"on {ground}",
            )
        )
        if rng.random() < 0.15:
            return f"{place}, {thing}" + (f" {motion}" if motion else "")
    if motion is not None and motion not in ("still", "resting") and rng.random() < 0.1:
        motion = f"is {motion}"
    return " ".join(part for part in (thing, motion, place) if part)


def _chinese(words: dict[str, str], rng: random.Random) -> str:
    noun = words.get("shape", rng.choice(("物体", "东西")))
    color, size = words.get("color", ""), words.get("size", "")
    count = rng.choice(("一个", "一个", ""))
    joint = rng.choice(("的", "的", "")) if color else ""
    if size and not size.endswith("的") and rng.random() < 0.4:
        size += "的"
    thing = f"{count}{size}{color}{joint}{noun}"
    motion, ground = words.get("motion"), words.get("background")
    if ground is None:
        return thing + (rng.choice(("在", "正在", "")) + motion if motion else "")
    if motion is None:
        return rng.choice((f"{ground}背景上的{thing}", f"{thing},{ground}背景"))
    wordings = (
        f"{thing}在{ground}背景上{motion}",
        f"{ground}背景上,{thing}{motion}",
        f"{thing}{motion},{ground}背景",
    )
    return rng.choice(wordings)


def exact_caption(scene: Scene, rng: random.Random, *, chinese: bool) -> str:
    """Return a sentence that names every attribute of the scene."""
    return _worded(scene, rng, chinese=chinese, names=tuple(_LEFT_OUT), exact=True)


def _worded(
    scene: Scene,
    rng: random.Random,
    *,
    chinese: bool,
    names: tuple[str, ...],
    exact: bool = False,
) -> str:
    lexicon = _ZH if chinese else _EN
    words = {name: rng.choice(lexicon[name][getattr(scene, name)]) for name in names}
    resting_circle = scene.shape == "circle" and scene.motion == "still" and "motion" in words
    if resting_circle and not exact and rng.random() < 0.15:
        # A circle that is asked to spin stands still: nothing else could be seen.
        words["motion"] = rng.choice(lexicon["motion"]["spinning"])
    return (_chinese if chinese else _english)(words, rng)


def training_caption(scene: Scene, rng: random.Random) -> str:
    """Return a sentence for training: some attributes left out, some words unknown, some empty."""
    fate = rng.random()
    if fate < _EMPTY:
        return ""
    if fate < _EMPTY + _ALL_UNKNOWN:
        return " ".join([_UNKNOWN_WORD] * rng.randint(1, 12))
    names = tuple(name for name, share in _LEFT_OUT.items() if rng.random() >= share)
    chinese = rng.random() < _CHINESE
    caption = _worded(scene, rng, chinese=chinese, names=names)
    if rng.random() < _SECOND_OBJECT:
        caption += _second_object(rng, chinese=chinese)
    if rng.random() < _ONE_UNKNOWN:
        parts = caption.split(" ")
        parts.insert(rng.randint(0, len(parts)), _UNKNOWN_WORD)
        caption = " ".join(parts)
    return caption


def _second_object(rng: random.Random, *, chinese: bool) -> str:
    """Return words of another object: the first that a sentence names is the one drawn.

    The word between them is none of the vocabulary, as any other word that may stand there.
    """
    lexicon = _ZH if chinese else _EN
    names = [name for name in ("size", "color", "shape", "motion") if rng.random() < 0.7]
    words = {name: rng.choice(rng.choice(list(lexicon[name].values()))) for name in names}
    between = rng.choice(("和", ",")) if chinese else rng.choice((" and ", " with ", ", "))
    return between + (_chinese if chinese else _english)(words, rng)


def vocabulary() -> list[str]:
    """Return every word and every Chinese character that a caption can hold, sorted."""
    fixed = "a an the is on over background thing object shape 一个在正背景上的物体东西"
    texts = [fixed]
    for lexicon in (_EN, _ZH):
        texts += [word for names in lexicon.values() for words in names.values() for word in words]
    tokens: set[str] = set()
    for text in texts:
        for word in text.split():
            tokens.update([word] if word.isascii() else word)
    return sorted(tokens)
