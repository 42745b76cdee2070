"""Counts of compiled programs, by hand and of programs that XLA makes for this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import compiled_cost, hlo

# Two compiled_cost, a loop whose body writes a row of an array in place, and a branch.
PROGRAM = """
%row (p0: f32[100,8], p1: f32[8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = f32[8]{0} parameter(1)
  %line = f32[1,8]{1,0} bitcast(%p1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %out = f32[100,8]{1,0} dynamic-update-slice(%p0, %line, %p2, %zero)
}

%read (p0.1: f32[100,8], p1.1: s32[]) -> f32[1,8] {
  %p0.1 = f32[100,8]{1,0} parameter(0)
  %p1.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %out.1 = f32[1,8]{1,0} dynamic-slice(%p0.1, %p1.1, %zero.1), dynamic_slice_sizes={1,8}
}

%body (c: (s32[], f32[100,8], f32[8])) -> (s32[], f32[100,8], f32[8]) {
  %c = (s32[], f32[100,8]{1,0}, f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %a = f32[100,8]{1,0} get-tuple-element(%c), index=1
  %b = f32[8]{0} get-tuple-element(%c), index=2
  %written = f32[100,8]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%row
  %next = s32[] copy(%i)
  ROOT %t = (s32[], f32[100,8]{1,0}, f32[8]{0}) tuple(%next, %written, %b)
}

ENTRY %main (x: f32[100,8], y: bf16[8]) -> f32[1,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %wide = f32[8]{0} convert(%y)
  %start = s32[] constant(0)
  %carry = (s32[], f32[100,8]{1,0}, f32[8]{0}) tuple(%start, %x, %wide)
  %loop = (s32[], f32[100,8]{1,0}, f32[8]{0}) while(%carry), condition=%cond, body=%body
  %end = f32[100,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %last = f32[1,8]{1,0} fusion(%end, %start), kind=kLoop, calls=%read
}
"""


def test_counts_of_a_program_written_by_hand():
    program, entry = hlo.computations(PROGRAM)
    assert entry == "main"
    # The conversion reads 16 and writes 32 bytes; the slice reads 32, an index, and writes 32.
    assert hlo.counts(program, entry) == hlo.Counts(2, 16 + 32 + 32 + 4 + 32, 1)
    (body,) = hlo.loops(program, entry)
    # Of the array that is written in place only the row counts; the copy moves a number twice.
    assert hlo.counts(program, body) == hlo.Counts(2, 32 + 32 + 4 + 8, 0)


def test_counts_of_a_loop_that_xla_compiled():
    def double(x):
        return lax.fori_loop(0, 10, lambda _, x: jnp.sin(x) * 2 + lax.rev(x, (0,)), x)

    compiled = jax.jit(double).lower(jax.ShapeDtypeStruct((1000,), np.float32)).compile()
    program, entry = hlo.computations(compiled.as_text())
    (body,) = hlo.loops(program, entry)
    once = hlo.counts(program, body)
    assert once.kernels >= 1
    assert 8_000 <= once.bytes <= 24_000  # read once or twice, written once or twice


@pytest.mark.parametrize(
    "shape, size",
    [("f32[2,3]{1,0}", 24), ("pred[]", 1), ("(bf16[4], s32[2,2]{1,0}, u8[0]{0})", 8 + 16)],
)
def test_size(shape, size):
    assert hlo.size(shape) == size


def test_what_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.computations("nothing of the kind")


@pytest.mark.parametrize("inference", [False, True])
def test_kernels(run, arguments, inference, monkeypatch):
    """The program for a GPU, compiled for what is here."""
    mesh = jax.make_mesh((1,), ("batch",), devices=jax.devices()[:1])
    monkeypatch.setattr(compiled_cost, "target_mesh", lambda: mesh)
    out, report = run(compiled_cost, [*arguments, "--batch=4", *["--inference"] * inference])
    parts = report["parts"]
    assert {name: part["times"] for name, part in parts.items()} == (
        {"once": 1, "forward": 3} if inference else {"once": 1, "forward": 3, "backward": 2}
    )
    # No branch in a step of a solver, for which a GPU would wait for the host.
    assert all(parts[name]["round_trips"] == 0 for name in parts if name != "once")
    assert report["kernels"] == sum(part["times"] * part["kernels"] for part in parts.values())
    assert f"{report['planned_bytes'] / 1e9:.3f} GB" in out


def test_kernels_without_the_plugin(run, arguments):
    with pytest.raises(RuntimeError, match=r"takes JAX's CUDA plugin.*\.\[cuda\]"):
        run(compiled_cost, [*arguments, "--batch=4"])
