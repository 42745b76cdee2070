"""Times of a program's kernels, and what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hlo
from benchmarks.solver import step_parts
from benchmarks.trace import Span, share_out, trace

# Two solves with a kernel of the cell and one of their own each, before them the arrays that they
# carry and another loop, and a branch after them.
PROGRAM = """
%step (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %z = f32[8]{0} get-tuple-element(%c), index=1
  %fz = f32[8]{0} copy(%z), metadata={op_name="jit(f)/while/body/jit(apply_cell)/group_norm/mul"}
  %update = f32[8]{0} copy(%fz), metadata={op_name="jit(f)/while/body/sub"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %update)
}

%back (c.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c.1 = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  %z.1 = f32[8]{0} get-tuple-element(%c.1), index=1
  %fz.1 = f32[8]{0} copy(%z.1), metadata={op_name="body/transpose(jvp(apply_cell))/group_norm/mul"}
  %update.1 = f32[8]{0} copy(%fz.1)
  ROOT %t.1 = (s32[], f32[8]{0}) tuple(%i.1, %update.1)
}

%taps (c.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c.2 = (s32[], f32[8]{0}) parameter(0)
  ROOT %tap = (s32[], f32[8]{0}) copy(%c.2), metadata={op_name="jvp(apply_cell)/while/body/dot"}
}

%branch (c.3: f32[8]) -> f32[8] {
  %c.3 = f32[8]{0} parameter(0)
  ROOT %fallen = f32[8]{0} copy(%c.3)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %broadcast.1 = f32[8]{0} broadcast(%zero), dimensions={}
  %kernel = (s32[], f32[8]{0}) tuple(%zero, %x)
  %loop.0 = (s32[], f32[8]{0}) while(%kernel), condition=%cond, body=%taps
  %first = (s32[], f32[8]{0}) tuple(%zero, %broadcast.1)
  %loop.1 = (s32[], f32[8]{0}) while(%first), condition=%cond, body=%step
  %end = f32[8]{0} get-tuple-element(%loop.1), index=1
  %head = f32[8]{0} copy(%end), metadata={op_name="jit(apply_cell)/last"}
  %second = (s32[], f32[8]{0}) tuple(%zero, %head)
  %loop.2 = (s32[], f32[8]{0}) while(%second), condition=%cond, body=%back
  %out = f32[8]{0} get-tuple-element(%loop.2), index=1
  ROOT %last = f32[8]{0} conditional(%zero, %out, %out), branch_computations={%branch, %branch}
}
"""


def test_kernels_of_a_step_are_assigned_to_its_parts():
    parts = step_parts(*hlo.computations(PROGRAM))
    assert parts["cell"] == {"fz"} and parts["pullback"] == {"fz.1"}
    assert "update" in parts["forward"] and "update.1" in parts["backward"]
    assert parts["buffers"] == {"broadcast.1"}
    assert {"tap", "head", "fallen"} <= parts["rest"]
    everything = [name for names in parts.values() for name in names]
    assert len(everything) == len(set(everything))
    with pytest.raises(RuntimeError, match="has 1 loops that evaluate the cell"):
        step_parts(*hlo.computations(PROGRAM.replace("jvp(apply_cell)", "jvp(f)")))


def test_time_on_the_clock_is_shared_out_once():
    spans = [
        Span("a", 0.0, 1.0),
        Span("b", 0.5, 2.0),  # at the same time as a, for half a second
        Span("a", 3.0, 4.0),
        Span("c", 3.25, 3.5),  # within a
        Span("loop", 0.0, 9.0),  # of no part
    ]
    assert share_out(spans, {"x": {"a"}, "y": {"b", "c"}, "z": {"d"}}) == {"x": 2, "y": 1, "z": 0}
    assert share_out(spans, {"y": {"b", "c"}, "x": {"a"}}) == {"y": 1.75, "x": 0.5 + 0.75}


def test_a_program_is_traced():
    function = jax.jit(lambda x: jax.lax.fori_loop(0, 4, lambda _, x: jnp.sin(x @ x), x))
    x = jnp.ones((300, 300))
    compiled = function.lower(x).compile()
    spans, seconds = trace(lambda: compiled(x), runs=2)
    program, entry = hlo.computations(compiled.as_text())
    (body,) = hlo.loops(program, entry)
    inside = {line.name for line in program[body]}
    runs = [span for span in spans if span.name in inside]
    assert len(runs) >= 2 * 4
    taken = share_out(spans, {"inside": inside})["inside"]
    assert 0 < taken < seconds
    np.testing.assert_allclose(taken, sum(span.end - span.start for span in runs), rtol=0.2)
