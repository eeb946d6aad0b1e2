"""Hands followed through pictures that an ideal network reads exactly (marker_hands.py)."""

import json

import numpy as np
import pytest
from marker_hands import MarkerEngine, draw, hand_at

from handmesh.cli.shell import hand_finder
from handmesh.detect import Detection, GivenBoxes
from handmesh.hand import Handedness
from handmesh.motion.track import Tracker, Tracking
from handmesh.predict import Predictor

RIGHT, LEFT = Handedness.RIGHT, Handedness.LEFT
FPS = 30


def path(index):
    """A hand that moves 4 px a frame and turns."""
    return hand_at(100 + 4 * index, 160 + 20 * np.sin(index / 5), 46 + index / 5, 0.05 * index)


def wrist(tracked):
    return tracked.hand.keypoints_image()[0]


def test_a_moving_hand_is_followed_with_one_crop():
    engine = MarkerEngine()
    track = Tracker(Predictor(engine))
    crops = []
    for index in range(30):
        before = engine.crop_count
        (tracked,) = track(draw([path(index)]), index / FPS)
        crops.append(engine.crop_count - before)
        assert tracked.id == 1
        assert tracked.found == (index == 0)
        np.testing.assert_allclose(wrist(tracked), path(index)[0], atol=1.0)
    assert crops[0] == 5, "three to find it, two to check"
    assert sum(crops[1:]) == 29 + 1, "then one each, and a check every 0.8 s"
    assert tracked.hand.source == "tracking"


def test_a_hidden_hand_is_lost_and_keeps_its_id():
    """The network imagines a hand in every crop; the check finds it out."""
    track = Tracker(Predictor(MarkerEngine()), settings=Tracking(patience=0.1))
    ids = []
    for index in range(60):
        hidden = 10 <= index < 45
        tracked = track(draw([] if hidden else [path(min(index, 30))]), index / FPS)
        ids.append([item.id for item in tracked])
    assert ids[:10] == [[1]] * 10
    assert ids[30:45] == [[]] * 15, "it is found out when the check is due, after 0.8 s at the latest"
    assert ids[46:] == [[1]] * 14


def test_a_hand_that_leaves_the_picture_is_given_up_and_a_new_one_has_a_new_id():
    track = Tracker(Predictor(MarkerEngine()), settings=Tracking(memory=0.5, patience=0.1))
    for index in range(20):
        tracked = track(draw([hand_at(250 + 8 * index, 150)]), index / FPS)
    assert tracked == []
    for index in range(20, 60):
        assert track(draw([]), index / FPS) == []
    (tracked,) = track(draw([hand_at(80, 150)]), 2.5)
    assert tracked.id == 2


class Shuffling:
    """Says where the dots are, in any order, now and then not; sides as given."""

    name, searches = "shuffling", True

    def __init__(self):
        self.rng, self.hands = np.random.default_rng(0), []

    def __call__(self, image):
        found = [
            Detection((x - 40, y - 90, x + 40, y + 10), side, 0.9, "mediapipe")
            for ((x, y), _), side in self.hands
            if self.rng.random() > 0.2
        ]
        self.rng.shuffle(found)
        return found


def test_two_hands_keep_their_ids_in_whatever_order_they_are_found():
    detector = Shuffling()
    track = Tracker(Predictor(MarkerEngine()), detector=detector, settings=Tracking(detect_every=0.1))
    places = {}
    for index in range(40):
        detector.hands = [(hand_at(60 + 4 * index, 100), RIGHT), (hand_at(260 - 4 * index, 220), LEFT)]
        for item in track(draw([hand for hand, _ in detector.hands]), index / FPS):
            nearest = min((0, 1), key=lambda n: np.linalg.norm(wrist(item) - detector.hands[n][0][0]))
            places.setdefault(item.id, set()).add((nearest, item.hand.handedness))
            assert np.linalg.norm(wrist(item) - detector.hands[nearest][0][0]) < 2
    assert sorted(map(list, places.values())) == [[(0, RIGHT)], [(1, LEFT)]]


def test_a_detector_that_insists_changes_the_side():
    detector = Shuffling()
    track = Tracker(Predictor(MarkerEngine()), detector=detector, settings=Tracking(detect_every=0.05))
    sides = []
    for index in range(30):
        detector.hands = [(hand_at(150, 160), RIGHT if index == 0 else LEFT)]
        sides.append([item.hand.handedness for item in track(draw([detector.hands[0][0]]), index / FPS)])
    assert sides[0] == [RIGHT]
    assert sides[1] == [RIGHT], "once is no insisting"
    assert sides[-1] == [LEFT]


def test_the_network_is_asked_where_the_detector_is_not_certain_of_the_side():
    """A right hand of which the detector said left, at 0.6, was taken for a left one for good; `predict` said right."""

    class Doubtful(Shuffling):
        def __call__(self, image):
            return [Detection((110, 70, 210, 170), LEFT, 0.99, "hand detector", 0.0, 0.6, is_probability=True)]

    track = Tracker(Predictor(MarkerEngine(heads=True)), detector=Doubtful())
    for items in follow(track, [thumbed(0, RIGHT)] * 60):
        assert [item.hand.handedness for item in items] == [RIGHT]
        assert items[0].hand.handedness_score > 0.8


@pytest.mark.parametrize(
    ("score", "is_probability", "crops"), [(0.1, True, False), (0.3, True, True), (0.1, False, True)]
)
def test_what_a_detector_hardly_believes_in_costs_no_crop(score, is_probability, crops):
    """Candidates are many; a score that is no probability says nothing."""

    class Unsure(Shuffling):
        def __call__(self, image):
            return [Detection((110, 70, 210, 170), RIGHT, score, "hand detector", 0.0, is_probability=is_probability)]

    track = Tracker(Predictor(MarkerEngine(heads=True)), detector=Unsure())
    follow(track, [None] * 3)
    assert (track.crop_count > 0) == crops


def follow(track, hands):
    """What is tracked in pictures of hands, one after the other."""
    return [track(draw([] if hand is None else [hand]), index / FPS) for index, hand in enumerate(hands)]


def thumbed(index, side):
    return hand_at(160 + 50 * np.sin(index / 15), 160, 46, 0.01 * index, side)


@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_the_side_is_found_and_the_hand_is_there(side):
    """A left hand is shown mirrored, and turned back."""
    track = Tracker(Predictor(MarkerEngine(heads=True)))
    for index, (item,) in enumerate(follow(track, [thumbed(i, side) for i in range(20)])):
        assert (item.id, item.hand.handedness, item.hand.handedness_source) == (1, side, "found")
        assert item.hand.handedness_score > 0.9
        np.testing.assert_allclose(wrist(item), thumbed(index, side)[0], atol=1.0)


def test_a_side_that_was_mistaken_at_first_is_put_right_and_then_stays():
    """Three frames show the thumb of the other hand; so do ten frames later on, then five do not show it."""
    engine = MarkerEngine(heads=True)
    sides = [RIGHT] * 3 + [LEFT] * 60 + [RIGHT] * 10 + [None] * 5 + [LEFT] * 10
    tracked = follow(Tracker(Predictor(engine)), [thumbed(index, side) for index, side in enumerate(sides)])
    assert [[item.id for item in items] for items in tracked] == [[1]] * len(sides)
    found = [item.hand.handedness for (item,) in tracked]
    change = found.index(LEFT)
    assert found[:3] == [RIGHT] * 3
    assert change < 0.5 * FPS
    assert found[change:] == [LEFT] * (len(sides) - change)
    for index, (item,) in enumerate(tracked):
        np.testing.assert_allclose(wrist(item), thumbed(index, LEFT)[0], atol=1.0)


def test_a_side_that_is_given_stays():
    """And is sure, whatever the network says: its doubts were told as a given side's `handedness_score`."""
    track = Tracker(Predictor(MarkerEngine(heads=True)), handedness="left")
    for (item,) in follow(track, [thumbed(index, RIGHT) for index in range(30)]):
        hand = item.hand
        assert (hand.handedness, hand.handedness_source, hand.handedness_score) == (LEFT, "given", 1)


def test_a_network_that_tells_no_sides_is_given_right_hands():
    (item,) = follow(Tracker(Predictor(MarkerEngine())), [thumbed(0, LEFT)])[0]
    assert (item.hand.handedness, item.hand.handedness_source) == (RIGHT, "assumed")


def test_what_the_network_doubts_is_not_shown():
    """The dots are there and all is in its place, but the network says that this is no hand: then it is none."""
    engine = MarkerEngine(heads=True)
    track = Tracker(Predictor(engine))
    shown = []
    for index in range(60):
        engine.confidence = 0.2 if 10 <= index < 30 else 0.4 if 40 <= index < 50 else 0.9
        shown.append([item.id for item in track(draw([thumbed(0, RIGHT)]), index / FPS)])
    assert shown == [[1]] * 10 + [[]] * 20 + [[1]] * 30, (
        "found again at once; 0.4 is enough for a hand that is followed"
    )


def test_a_hand_is_found_only_when_the_network_is_surer():
    engine = MarkerEngine(heads=True)
    engine.confidence = 0.4
    assert follow(Tracker(Predictor(engine)), [thumbed(0, RIGHT)] * 5) == [[]] * 5


def test_given_boxes_are_where_hands_are_waited_for():
    boxes = GivenBoxes([(60, 80, 150, 190), (200, 80, 300, 190)], LEFT)
    track = Tracker(Predictor(MarkerEngine()), detector=boxes)
    assert track(draw([]), 0.0) == []
    (one,) = track(draw([hand_at(100, 170)]), 0.1)
    assert (one.hand.source, one.hand.handedness) == ("given box", LEFT)
    both = track(draw([hand_at(104, 170), hand_at(250, 170)]), 0.2)
    assert [item.id for item in both] == [1, 2]


def test_it_goes_on_from_its_state_bit_for_bit():
    one = Tracker(Predictor(MarkerEngine()))
    for index in range(5):
        one(draw([path(index)]), index / FPS)
    other = Tracker(Predictor(MarkerEngine()))
    other.restore(json.loads(json.dumps(one.state())))
    for index in range(5, 20):
        image = draw([] if index in (8, 9) else [path(index)])
        results = [t(image, index / FPS) for t in (one, other)]
        assert [item.id for item in results[0]] == [item.id for item in results[1]]
        for a, b in zip(*results, strict=True):
            assert (a.hand.vertices == b.hand.vertices).all()
            assert a.hand.crop == b.hand.crop


def test_time_does_not_run_backwards():
    track = Tracker(Predictor(MarkerEngine()))
    track(draw([path(0)]), 1.0)
    with pytest.raises(ValueError, match="order of time"):
        track(draw([path(0)]), 0.5)


def test_a_given_box_leaves_the_side_to_the_tracker():
    """In a window with --box, the key for the other hand did nothing: the box had a side of its own."""
    finder, most = hand_finder(None, ["20,20,300,220"], None)
    tracker = Tracker(Predictor(MarkerEngine()), detector=finder, settings=Tracking(max_hands=most))
    image = draw([hand_at(160, 170, 48)])
    for time, side in enumerate((Handedness.RIGHT, Handedness.LEFT)):
        tracker.handedness = side
        tracker.forget()
        assert [tracked.hand.handedness for tracked in tracker(image, float(time))] == [side]
