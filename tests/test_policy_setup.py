"""A policy made ready for a plan: what the exits said on validation rows reaches whoever needs it."""

from policy_cases import EXIT1, LOCAL, SPLIT_A, SPLIT_B

from splitedge.policy import Route
from splitedge.policy_setup import ready_policy
from splitedge.segments import Evidence

SURE = tuple(k / 100 for k in range(100))
RIGHT = tuple(k >= 40 for k in range(100))
EXIT0 = EXIT1.__class__(Route.EXIT, exit=0, accuracy=0.6, edge_s=0.004, edge_s_q95=0.005)


OPTIONS = (EXIT0, LOCAL, SPLIT_A, SPLIT_B)
SEEN = {0: Evidence(SURE, RIGHT)}


def test_what_a_guard_guards_is_given_its_thresholds():
    alone, thresholds = ready_policy("confidence:0.8", OPTIONS, SEEN)
    guarded, same = ready_policy("ensemble:confidence:0.8,hold=5", OPTIONS, SEEN)
    assert guarded.name == "ensemble"
    assert guarded.inner.thresholds == alone.thresholds == {0: thresholds[0].value}
    assert same == thresholds


def test_spinn_predicts_with_the_confidences_of_validation_rows():
    fitted, _ = ready_policy("spinn", OPTIONS, SEEN)
    before, _ = ready_policy("spinn", OPTIONS, {})
    after = fitted.designs(OPTIONS)
    k = int(((after.end == 2) & (after.threshold == 0.9)).nonzero()[0][0])
    assert abs(1.0 - after.goes_on[k] - 0.10) < 1e-9  # ten of a hundred rows
    assert before.designs(OPTIONS).goes_on[k] != after.goes_on[k]
