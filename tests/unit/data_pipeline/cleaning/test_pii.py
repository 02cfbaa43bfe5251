import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.cleaner import Cleaner
from data_pipeline.cleaning.personal import cards, emails, ip_addresses, is_card, phones
from data_pipeline.cleaning.secret_keys import secret_keys

ALL = {"step": "pii", **dict.fromkeys(("email", "ip", "phone", "card", "key"), "mask")}
# Assembled here, so that scanners do not take this file for a leak.
BLOCK = "-----BEGIN {0}PRIVATE KEY-----\n" + "MIIEow" * 30 + "\n" + "ab+/" * 12 + "==\n-----END {0}PRIVATE KEY-----"
KEYS = (
    BLOCK.format(""),
    BLOCK.format("RSA "),
    BLOCK.format("OPENSSH ").replace("\n", "\\n"),
    "AK" + "IA" + "IOSFODNN7EXAMPLE",
    "gh" + "p_" + "a1B2" * 9,
    "github" + "_pat_" + "a1B2" * 9,
    "glp" + "at-" + "a1B2" * 5,
    "hf" + "_" + "aB" * 17,
    "sk" + "-proj-" + "a1B2" * 9,
    "sk" + "_live_" + "a1B2" * 6,
    "xo" + "xb-" + "123456789012-abcdef",
    "AI" + "za" + "a1B2_" * 7,
    "ey" + "JhbGciOiJIUzI1NiJ9.ey" + "JzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
)


def found(finder, text):
    return [text[begin:end] for begin, end in finder(text)]


@pytest.mark.parametrize(
    "address",
    [
        "a@b.co",
        "first.last+tag@mail.example.org",
        "o'brien_x%y@sub-domain.example.museum",
        "jörg@müller.de",
        "ñ@例え.みんな",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "<{}>", "write to {}.", "'{}',", "mailto:{}?subject=x", "(…{}…)"])
def test_email_addresses_are_found_completely(address, frame):
    assert found(emails, frame.format(address)) == [address]


@pytest.mark.parametrize(
    "text", ["@decorator.name", "a @ b.co", "x@y", "x@localhost", "a@b.c", "@@", "user@1.2.3.4", "a@-b.co", "...@b.co"]
)
def test_other_uses_of_the_at_sign_are_left_alone(text):
    assert found(emails, text) == []


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.200", "2606:2800:220:1:248:1893:25c8:19", "2a00:1450::200e"]
)
@pytest.mark.parametrize("frame", ["{}", "from {}.", "[{}]", "{}, and", "http://{}/x"])
def test_public_addresses_are_found(address, frame):
    assert found(ip_addresses, frame.format(address)) == [address]


@pytest.mark.parametrize(
    "text",
    (
        *("3.11.7.1", "version 93.184.216.34", "v93.184.216.34", "openssl-93.184.216.34", "x==93.184.216.34"),
        *(
            "10.0.0.1",
            "192.168.1.77",
            "127.0.0.1",
            "::1",
            "fe80::1",
            "2001:db8::7",
            "1.3.6.1.4.1.99",
            "93.184.216.34.7",
        ),
        *("300.1.1.99", "93.184.216", "093.184.216.034", "std::x", "2023:10:11", "2345:6789", "x2a00:1450::200e"),
    ),
)
def test_versions_and_private_addresses_are_left_alone(text):
    assert found(ip_addresses, text) == []


@pytest.mark.parametrize("number", ["+49 30 1234567", "+1 (415) 555-2671", "(415) 555-2671", "1-415-555-2671"])
def test_telephone_numbers_are_found(number):
    assert found(phones, f"call {number}, please") == [number]


@pytest.mark.parametrize(
    "text",
    [
        "1 + 2345678",
        "2024-10-11",
        "555-2671",
        "1234567890",
        "a+12345678",
        "192.168.100.2000",
        "+0123456789",
        "384 768 1536",
        "+1.12345679",
    ],
)
def test_other_numbers_are_not_telephone_numbers(text):
    assert found(phones, text) == []


@pytest.mark.parametrize(
    "number",
    ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "3400 000000 00009", "6011000000000004"],
)
def test_cards_are_found_only_with_a_valid_check_digit(number):
    assert found(cards, f"card {number}.") == [number]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert found(cards, f"card {wrong}.") == []


@pytest.mark.parametrize(
    "text",
    ["1111111111111117", "0.4111111111111111", "4111111111111111.5", "x-4111111111111111", "4" + "1" * 22],
)
def test_other_long_numbers_are_not_cards(text):
    assert found(cards, text) == []


@given(st.text("0123456789", min_size=13, max_size=19))
def test_the_check_digit_follows_luhn(digits):
    doubled = "".join(d if (len(digits) - i) % 2 else str(2 * int(d)) for i, d in enumerate(digits))
    is_valid = sum(map(int, doubled.replace("", " ").split())) % 10 == 0
    assert is_valid or not is_card(digits)


FINDERS = {
    "john@example.com": emails,
    "93.184.216.34": ip_addresses,
    "2a00:1450::200e": ip_addresses,
    "+49 30 1234567": phones,
    "(415) 555-2671": phones,
    "4111 1111 1111 1111": cards,
    "AK" + "IA" + "IOSFODNN7EXAMPLE": secret_keys,
    "hf" + "_" + "aB" * 17: secret_keys,
}


@pytest.mark.parametrize("written", FINDERS)
@pytest.mark.parametrize("frame", ["_{}_", "__{}__", "**_{}_**", "{}__", "{}--Mary", "{}-", "{}- or", "{}--", "({}_)"])
def test_matches_in_emphasis_or_beside_a_dash_are_found(written, frame):
    assert found(FINDERS[written], frame.format(written)) == [written]


@pytest.mark.parametrize("written", [written for written in FINDERS if "@" not in written])
@pytest.mark.parametrize("frame", ["x{}", "x_{}", "x__{}", "{}x", "{}_x", "{}__x"])
def test_matches_inside_a_longer_name_are_left_alone(written, frame):
    assert found(FINDERS[written], frame.format(written)) == []


@pytest.mark.parametrize("number", ["4111 1111 1111 1111", "415-555-2671"])
def test_numbers_after_a_dash_are_found_unless_too_long(number):
    finder = cards if number.startswith("4111") else phones
    assert found(finder, f"mine--{number}") == [number]
    for longer in (f"2-{number}", f"{number}-2", f"-{number}", f"{number}_2"):
        assert found(finder, longer) == []


@pytest.mark.parametrize("address", ["a@b.com-pany.org", "a@b.com--pany.org", "a@b.com_pany.org"])
def test_a_domain_may_contain_hyphens_and_ends_in_letters(address):
    assert found(emails, address) == [address]


@pytest.mark.parametrize("text", ["x@self.weight_matrix", "x@self.weight__matrix", "a@b.com-pany", "a@b.com_-x"])
def test_invalid_domains_are_left_alone(text):
    assert found(emails, text) == []


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("frame", ["{}", "key = '{}'\n", "a {}\n\nb"])
def test_keys_are_found_completely(key, frame):
    assert found(secret_keys, frame.format(key)) == [key]


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PRIVATE KEY-----",
        "AK" + "IA1234",
        "gh" + "p_short",
        "sk-learn is a library-of-many-words-and-more",
        "eyJ.eyJ.",
    ],
)
def test_a_mention_of_a_key_is_not_a_key(text):
    assert (
        found(secret_keys, text + " is what it begins with; more text follows here, of some length, as it should be")
        == []
    )


def test_a_key_cut_off_by_the_documents_end_is_masked():
    cut = KEYS[0][:150]
    assert Cleaner([ALL]).clean(f"x\n{cut}").text == "x\n<key>"


def test_each_kind_can_be_ignored_masked_or_dropped():
    text = "mail a@b.co or a.b@c.org from 93.184.216.34"
    outcome = {
        mode: Cleaner([{"step": "pii", "email": mode, "ip": "off"}]).clean(text) for mode in ("off", "mask", "drop")
    }
    assert (outcome["off"].text, outcome["off"].changed_by) == (text, ())
    assert outcome["mask"].text == "mail <email> or <email> from 93.184.216.34"
    assert (outcome["mask"].changed_by, outcome["mask"].changes) == (("pii/email",), {"pii/email": 2})
    assert (outcome["drop"].text, outcome["drop"].dropped_by, outcome["drop"].changes) == (None, "pii/email", {})


@given(
    st.lists(
        st.sampled_from(
            ["a@b.co", "93.184.216.34", "4111 1111 1111 1111", "+49 30 1234567", KEYS[3], " ", ".", "x", "@", "1"]
        )
    )
)
def test_masking_twice_is_masking_once(parts):
    cleaner = Cleaner([ALL])
    once = cleaner.clean(" ".join(parts)).text
    assert cleaner.clean(once).text == once


MILLION = 1 << 20


@pytest.mark.parametrize(
    "piece",
    (
        *(
            "a@",
            "@",
            "a",
            "1",
            "1.",
            "1.1.1.1 ",
            "1:",
            "2000:",
            "4 ",
            "4111 ",
            "4111-1111-",
            "+1",
            "+1 ",
            "(415) ",
            "eyJ",
        ),
        *("eyJ-", "sk-", "sk-a-", "-", "a.", "a@b.", "a@a.a.a.a.a.a.a.a ", "AKIA", "-----BEGIN PRIVATE KEY-----"),
        "-----BEGIN A PRIVATE KEY-----x ",
        *("_", "a@b.co_", "@a.bc_-", "1.1.1.1_", "_1", "--4", "+1--", "_eyJ", "--eyJ", "-_eyJ", "-_sk-", "_AKIA"),
    ),
)
def test_adversarial_text_of_a_megabyte_takes_under_a_second(piece):
    text = piece * (MILLION // len(piece))
    cleaner = Cleaner([ALL])
    begin = time.process_time()
    cleaner.clean(text)
    assert time.process_time() - begin < 1
