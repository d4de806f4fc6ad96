import pytest

from reelmesh_cli.console import print_error
from wan_t2v_sdk import FieldViolation, InvalidRequestError


def violation(field, *nearest):
    return FieldViolation(field, "is wrong", nearest)


@pytest.mark.parametrize(
    ("message", "nearest"),
    [
        ("num_frames: is wrong; the nearest are 17, 13", ("17", "13")),
        ("width: is wrong; the nearest is 128x96", ("128x96",)),
        ("num_frames: is wrong; the nearest are 17, 13; also wrong: seed", ("17", "13")),
    ],
)
def test_what_the_message_says_is_not_said_again(message, nearest, capsys):
    print_error(InvalidRequestError(message, violations=(violation("num_frames", *nearest),)))
    said = capsys.readouterr().err
    assert said.count(", ".join(nearest)) == 1


def test_nearest_values_that_found_no_room_in_the_message_follow_it(capsys):
    message = "width: is wrong; the nearest is 128x96; also wrong: steps, num_frames, seed"
    violations = (
        violation("width", "128x96"),
        violation("steps", "1"),
        violation("num_frames", "17", "13"),
        violation("seed"),
    )
    print_error(InvalidRequestError(message, violations=violations))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"error: {message}",
        "  steps: the nearest: 1",
        "  num_frames: the nearest: 17, 13",
    ]
