"""Options that commands on models share."""

import pytest

from qimeng_tvm.commands.model_options import buckets_of, shapes_of
from qimeng_tvm.errors import UsageError


def test_shapes_and_buckets():
    assert shapes_of(None) == {} and shapes_of(["x=1x3X224", "s="]) == {"x": (1, 3, 224), "s": ()}
    assert buckets_of(None) is None and buckets_of([]) is None
    assert buckets_of(["n=1,8", "s="]) == {"n": (1, 8), "s": ()}


@pytest.mark.parametrize("text", ["n", "=1", "n=0", "n=1,a", "n=1,-2"])
def test_what_is_no_bucket(text):
    with pytest.raises(UsageError, match="is not NAME=SIZES"):
        buckets_of([text])
