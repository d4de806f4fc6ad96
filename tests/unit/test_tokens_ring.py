"""Keys of an issuer's own: what signs, what is published, and what is deleted when."""

import json
import multiprocessing

import jwt
import pytest

from reelkit.tokens.ring import JWKS_FILE, KeyRing, RingError

NOW_S = 1_700_000_000.0
DAY_S = 86_400.0


@pytest.fixture
def ring(tmp_path):
    return KeyRing.create(tmp_path / "keys", issuer="i", audience="a", now_s=NOW_S)


def published(ring):
    return [each["kid"] for each in json.loads((ring.folder / JWKS_FILE).read_text())["keys"]]


def private(ring):
    return {file.stem for file in ring.folder.glob("*.pem")}


def claims_of(ring, token):
    keys = jwt.PyJWKSet.from_dict(json.loads((ring.folder / JWKS_FILE).read_text()))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    off = {"verify_exp": False, "verify_iat": False}
    return jwt.decode(token, key, algorithms=["EdDSA"], audience="a", issuer="i", options=off)


def test_a_token_holds_against_the_published_keys(ring):
    signed = ring.sign({"sub": "alice", "tenant": "t"}, now_s=NOW_S, ttl_s=60)
    claims = claims_of(ring, signed.token)
    assert (claims["sub"], claims["tenant"], claims["jti"]) == ("alice", "t", signed.jti)
    assert (claims["iat"], claims["exp"]) == (NOW_S, NOW_S + 60)


def test_every_file_is_its_owners_alone_and_the_key_set_is_public(ring):
    assert ring.folder.stat().st_mode & 0o077 == 0
    for file in ring.folder.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    assert "d" not in json.loads((ring.folder / JWKS_FILE).read_text())["keys"][0]


def test_a_new_key_is_published_before_it_signs_and_the_old_one_stays(ring):
    old = ring.keys[0].kid
    made = ring.rotate(now_s=NOW_S, lead_s=600, keep_s=30 * DAY_S)
    assert published(ring) == [old, made.kid]
    assert ring.sign({}, now_s=NOW_S + 599, ttl_s=60).kid == old
    assert ring.sign({}, now_s=NOW_S + 600, ttl_s=60).kid == made.kid
    before = ring.sign({}, now_s=NOW_S + 599, ttl_s=60)
    assert claims_of(ring, before.token)


def test_an_old_key_is_taken_out_when_its_tokens_are_over(ring):
    old = ring.keys[0].kid
    made = ring.rotate(now_s=NOW_S, lead_s=600, keep_s=DAY_S)
    assert ring.prune(now_s=NOW_S + 600 + DAY_S - 1) == ()
    # It signs no more: nobody needs its private half.
    assert private(ring) == {made.kid}
    assert published(ring) == [old, made.kid]
    assert ring.prune(now_s=NOW_S + 600 + DAY_S) == (old,)
    assert published(ring) == [made.kid]
    assert KeyRing.open(ring.folder).keys == ring.keys


def test_in_an_emergency_the_old_key_is_gone_at_once(ring):
    ring.rotate(now_s=NOW_S, lead_s=0, keep_s=0)
    made = ring.keys[-1].kid
    ring.prune(now_s=NOW_S)
    assert (published(ring), private(ring)) == ([made], {made})


def test_no_token_outlives_its_key(ring):
    ring.rotate(now_s=NOW_S, lead_s=600, keep_s=60)
    with pytest.raises(RingError, match="ask for no more"):
        ring.sign({}, now_s=NOW_S, ttl_s=661)
    assert ring.sign({}, now_s=NOW_S, ttl_s=660)
    assert ring.sign({}, now_s=NOW_S + 600, ttl_s=661)


def test_a_key_that_waits_must_sign_before_the_next(ring):
    ring.rotate(now_s=NOW_S, lead_s=600, keep_s=60)
    with pytest.raises(RingError, match="must do so first"):
        ring.rotate(now_s=NOW_S + 1, lead_s=0, keep_s=0)
    assert len(ring.keys) == 2


def test_a_folder_holds_one_ring(ring, tmp_path):
    with pytest.raises(RingError, match="already"):
        KeyRing.create(ring.folder, issuer="i", audience="a", now_s=NOW_S)
    with pytest.raises(RingError, match=r"holds no ring\.json"):
        KeyRing.open(tmp_path)
    (ring.folder / "ring.json").write_text('{"keys": 1}')
    with pytest.raises(RingError, match="not what was written"):
        KeyRing.open(ring.folder)


def test_a_private_key_that_is_gone_is_told(ring):
    (ring.folder / f"{ring.keys[0].kid}.pem").unlink()
    with pytest.raises(RingError, match="No such file"):
        ring.sign({}, now_s=NOW_S, ttl_s=60)


def _rotate(folder, results):
    try:
        KeyRing.open(folder).rotate(now_s=NOW_S, lead_s=600, keep_s=60)
    except RingError:
        results.put("refused")
    else:
        results.put("rotated")


def test_of_two_that_rotate_at_once_one_does(ring):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    both = [context.Process(target=_rotate, args=(ring.folder, results)) for _ in range(2)]
    for process in both:
        process.start()
    told = sorted(results.get(timeout=60) for _ in both)
    for process in both:
        process.join(60)
    assert told == ["refused", "rotated"]
    assert len(KeyRing.open(ring.folder).keys) == 2
