"""Numbers in quotes, whatever their units and words; quotes in texts, however they are set."""

import pytest

from qimeng_tvm.generate.quotes import numbers, plain


@pytest.mark.parametrize(
    ("quote", "kind", "said"),
    [
        ("thirty-two 512-bit registers", "count", {32}),
        ("Thirty-two 512-bit registers", "bits", {512}),
        ("registers ZMM0-ZMM31 are", "count", {32}),  # and neither 0 nor 31
        ("registers v0–v31 are", "count", {32}),
        ("z0 to 31 are visible", "count", {32}),
        ("64-byte lines", "bits", {512}),
        ("64-byte lines", "bytes", {64}),
        ("64-byte lines", "count", set()),
        ("line of 512 bits", "bytes", {64}),
        ("L2 | 1.5 MB | 12-way", "kib", {1536}),
        ("L2 | 1.5 MB | 12-way", "count", {12}),
        ("1,024 kB in all", "kib", {1024}),
        ("a 48-Kbyte cache", "kib", {48}),
        ("a 32K L1 cache", "kib", {32}),
        ("2 megabytes per core", "kib", {2048}),
        ("Size (KB) | 48", "kib", {48}),
        ("the size in MiB is 2", "kib", {2048}),
        ("48-entry TLB and 64 KB cache", "kib", {64}),  # the entries are no KB
        ("32 of them", "kib", set()),
        ("64 GB of memory", "gib", {64}),
        ("1 TiB of memory", "gib", {1024}),
        ("one hundred and twenty-eight cores", "count", {128}),
        ("each core runs two threads", "count", {2}),
        ("dual threaded", "count", {2}),
        ("64 Kbit x 8", "count", {8}),
        ("L1D and l2", "level", {1, 2}),
        ("the second-level cache", "level", {2}),
        ("level 3 cache", "level", {3}),
        ("the 1 MB cache", "level", set()),
        ("9" * 5000 + " cores", "count", set()),
    ],
)
def test_numbers_of_a_quote(quote, kind, said):
    assert set(numbers(quote, kind)) == said


def test_texts_are_compared_without_dress():
    assert plain("The  **L1** cache\n is ‘48\u00a0KB’ – 12‑way") == "the l1 cache is '48 kb' - 12-way"
    assert plain("`v0`") == "v0"
