from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import opu
from opu.errors import UriError
from opu.uri import UriOption, parse_host_port, parse_uri, parse_whole

SEED = UriOption("seed", int, 0, "device seed, a whole number")
PRESET = UriOption("preset", str, "aurora", "aurora or ideal")


@pytest.mark.parametrize(
    ("text", "scheme", "rest", "options"),
    [
        ("sim:", "sim", "", {}),
        ("sim:?preset=aurora&seed=7", "sim", "", {"preset": "aurora", "seed": "7"}),
        ("tcp://127.0.0.1:5755", "tcp", "//127.0.0.1:5755", {}),
        ("bench:table.toml", "bench", "table.toml", {}),
        ("sim:?name=a%26b", "sim", "", {"name": "a&b"}),
        ("sim:?name=", "sim", "", {"name": ""}),
        ("x-y.z+1:rest", "x-y.z+1", "rest", {}),
    ],
)
def test_an_address_has_a_scheme_a_rest_and_options(text, scheme, rest, options):
    uri = parse_uri(text)
    assert (uri.text, uri.scheme, uri.rest, dict(uri.options)) == (text, scheme, rest, options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no scheme"),
        ("aurora", "no scheme"),
        ("SIM:", "no scheme"),
        ("7sim:", "no scheme"),
        (":rest", "no scheme"),
        ("sim: ?seed=1", "white space"),
        ("sim:\x1b[31m", "control characters"),
        ("sim:?seed", "malformed"),
        ("sim:?seed=1&", "malformed"),
        ("sim:?seed=1&seed=2", "twice"),
    ],
)
def test_a_malformed_address_says_what_is_wrong_with_it(text, said):
    with pytest.raises(UriError, match=said) as caught:
        parse_uri(text)
    assert repr(text) in caught.value.problem or "options" in caught.value.problem
    assert caught.value.remedy


# All characters but surrogates, without the table of Unicode that `st.characters()` makes first, for seconds.
_CHARACTERS = (st.integers(0, 0xD7FF) | st.integers(0xE000, 0x10FFFF) | st.integers(0, 0x7F)).map(chr)
_KEYS = st.text(_CHARACTERS, min_size=1, max_size=10)
_VALUES = st.text(_CHARACTERS, max_size=10)


@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_any_option_survives_percent_encoding(options):
    query = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in options.items())
    uri = parse_uri(f"sim:rest?{query}")
    assert dict(uri.options) == options
    assert uri.rest == "rest"


@given(st.text(st.sampled_from("sim:tcp/?&=%[]").map(str) | _CHARACTERS, max_size=60))
def test_any_text_is_an_address_or_a_uri_error(text):
    try:
        uri = parse_uri(text)
    except UriError:
        return
    assert text.startswith(f"{uri.scheme}:{uri.rest}")


def test_options_are_converted_and_the_others_have_their_defaults():
    assert parse_uri("sim:?seed=7").read_options([SEED, PRESET]) == {"seed": 7, "preset": "aurora"}


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UriError, match=r"Unknown option 'speed'.*preset, seed"):
        parse_uri("sim:?speed=1").read_options([SEED, PRESET])


def test_a_backend_without_options_says_so():
    with pytest.raises(UriError, match="no option"):
        parse_uri("sim:?speed=1").read_options([])


def test_a_value_that_cannot_be_converted_names_value_and_meaning():
    with pytest.raises(UriError, match=r"seed='seven'.*a whole number"):
        parse_uri("sim:?seed=seven").read_options([SEED])


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:5755", "127.0.0.1", 5755),
        ("tcp://lab.example:1", "lab.example", 1),
        ("tcp://[::1]:65535", "::1", 65535),
        ("tcp://[2001:db8::1]:5755?timeout_s=2", "2001:db8::1", 5755),
    ],
)
def test_a_network_address_names_host_and_port(text, host, port):
    assert parse_host_port(parse_uri(text)) == (host, port)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "127.0.0.1:5755",
        "//127.0.0.1",
        "//127.0.0.1:",
        "//127.0.0.1:0",
        "//127.0.0.1:65536",
        "//127.0.0.1:port",
        "//127.0.0.1:-1",
        "//:5755",
        "//*:5755",
        "//::1:5755",
        "//user@host:5755",
        "//host:5755/path",
    ],
)
def test_a_malformed_host_or_port_is_refused_with_an_example(rest):
    with pytest.raises(UriError, match="host and a port") as caught:
        parse_host_port(parse_uri(f"tcp:{rest}"))
    assert "tcp://127.0.0.1:5755" in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "1_000", "\N{ARABIC-INDIC DIGIT THREE}", " 1", "+1", "-1", "1.0", "1\n", "9" * 5000]
)
def test_a_whole_number_is_written_in_digits_alone(text):
    with pytest.raises(ValueError, match=r"not a whole number|4300 digits"):
        parse_whole(text)


def test_a_seed_is_a_whole_number():
    with pytest.raises(UriError, match=r"seed='1_000'.*decimal digits"):
        opu.open("sim:?seed=1_000")
