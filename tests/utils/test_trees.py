"""Splitting, merging and matching of parameter trees."""

import jax.numpy as jnp
import pytest

from vpt_jax.utils import lookup, trees

PARAMS = {
  "backbone": {"cls": jnp.zeros(3), "block": {"bias": jnp.zeros(2)}},
  "method": {"prompt": jnp.zeros((2, 2))},
  "head": {"bias": jnp.zeros(5), "kernel": jnp.zeros((3, 5))},
}


@pytest.mark.parametrize(
  "pattern,names",
  [
    (r"(method|head)/.*", {"method/prompt", "head/bias", "head/kernel"}),
    (r".*", {*trees.flatten(PARAMS)}),
    (r"head/.*|.*bias", {"head/bias", "head/kernel", "backbone/block/bias"}),
  ],
)
def test_split_and_merge_are_inverse(pattern, names):
  trainable, frozen = trees.split(PARAMS, pattern)
  assert set(trainable) == names
  assert not set(trainable) & set(frozen)
  merged = trees.merge(trainable, frozen)
  assert trees.flatten(merged).keys() == trees.flatten(PARAMS).keys()
  assert (
    merged["backbone"]["block"]["bias"] is (PARAMS["backbone"]["block"]["bias"])
  )


def test_a_pattern_must_match_the_whole_path():
  assert set(trees.split(PARAMS, "head/bia.")[0]) == {"head/bias"}


def test_split_errors():
  with pytest.raises(
    ValueError,
    match=(
      r"config.trainable=r'promt/\.\*' matches no parameter; top-level names "
      r"are backbone, method, head"
    ),
  ):
    trees.split(PARAMS, "promt/.*")
  with pytest.raises(ValueError, match="not a regular expression"):
    trees.split(PARAMS, "(")


def test_merge_refuses_a_leaf_of_two_trees():
  with pytest.raises(ValueError, match="'head/bias' is in two trees"):
    trees.merge({"head/bias": 1}, {"head/bias": 2})


def test_match_takes_the_first_rule_and_covers_all():
  table = [("head/bias", 0), (".*", 1)]
  assert trees.match(["head/bias", "head/kernel"], table) == {
    "head/bias": 0,
    "head/kernel": 1,
  }
  with pytest.raises(ValueError, match="no rule matches parameter 'x'"):
    trees.match(["x", "head/bias"], table[:1], "policies")
  with pytest.raises(ValueError, match="rule r'head/bias' matches no param"):
    trees.match(["x"], table)
  with pytest.raises(ValueError, match="rule r'head/bias' matches no param"):
    trees.match(["head/bias"], [(".*", 1), ("head/bias", 0)])


def test_count_and_choose():
  assert trees.count(trees.flatten(PARAMS)) == 3 + 2 + 4 + 5 + 15
  with pytest.raises(
    ValueError,
    match=("unknown method 'vpat'; did you mean 'vapt'\\? known: linear, vapt"),
  ):
    lookup.choose("vpat", ["vapt", "linear"], "method")


def test_flat_trees_are_sorted_and_keep_no_empty_dicts():
  tree = {"b": {"y": 1, "x": {}}, "a": 2}
  flat = trees.flatten(tree)
  assert list(flat.items()) == [("a", 2), ("b/y", 1)]
  assert trees.unflatten(flat) == {"b": {"y": 1}, "a": 2}
  assert trees.flatten({}) == {} == trees.unflatten({})
