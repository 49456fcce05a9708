"""Wrong shared libraries: a plain C product with TVM's calling convention, with text replaced; and times not to believe.

What compiled TensorIR cannot easily do, but a library from elsewhere can: keep results, look at addresses, start
threads, call others.
"""

from __future__ import annotations

from harness import Bench, Edit, Mutation, Verdict, edited

from qimeng_tvm.check.timing import sanity
from qimeng_tvm.request import Request, parse

SOURCE = """
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <tvm/ffi/c_api.h>

static DLTensor* tensor(const TVMFFIAny* arg) {
  if (arg->type_index == kTVMFFIDLTensorPtr) return (DLTensor*)arg->v_ptr;
  return (DLTensor*)((char*)arg->v_obj + sizeof(TVMFFIObject));
}

/* globals */

static void product(TA* A, TB* B, TC* C, long M, long N, long K) {
  for (long i = 0; i < M; ++i) {
    for (long j = 0; j < N; ++j) {
      TC sum = 0;
      for (long k = 0; k < K; ++k) {
        sum += (TC)A[i * K + k] * (TC)B[k * N + j];
      }
      C[i * N + j] = sum;
    }
  }
}

int __tvm_ffi_main(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  DLTensor *a = tensor(args), *b = tensor(args + 1), *c = tensor(args + 2);
  TA* A = a->data;
  TB* B = b->data;
  TC* C = c->data;
  long M = a->shape[0], K = a->shape[1], N = b->shape[1];
  (void)self; (void)count; (void)result;
  /* before */
  product(A, B, C, M, N, K);
  /* after */
  return 0;
}
"""

TYPES = {
    "f32": ("float", "float", "float", "f32 gemm 13x21x35"),
    "u8s8": ("uint8_t", "int8_t", "int32_t", "u8s8 gemm 13x21x35"),
}
CONTROLS = list(TYPES)


def build_and_check(bench: Bench, types: str, edits: tuple[Edit, ...], mnemonics: tuple[str, ...] = ()) -> Verdict:
    """Compile the product with text replaced, and check it."""
    a, b, c, line = TYPES[types]
    flags = [f"-DTA={a}", f"-DTB={b}", f"-DTC={c}"]
    return bench.library(edited(SOURCE, edits), flags, one_thread(line), mnemonics, timeout=20)


def one_thread(line: str) -> Request:
    """Read a request for one core."""
    return parse(f"{line} 1 thread")


def _c(
    name: str,
    breaks: str,
    *edits: Edit,
    expects: tuple[str, ...] = ("wrong",),
    types: str = "f32",
    mnemonics: tuple[str, ...] = (),
) -> Mutation:
    def apply(bench: Bench) -> Verdict:
        return build_and_check(bench, types, edits, mnemonics)

    dtype = "f32" if types == "f32" else "int8"
    return Mutation(f"c-{name}", breaks, "artefact", dtype, frozenset(expects), apply)


_GLOBALS, _BEFORE, _AFTER = "/* globals */", "/* before */", "/* after */"
_SUM, _STORE = "sum += (TC)A[i * K + k] * (TC)B[k * N + j];", "C[i * N + j] = sum;"
_CALL = "product(A, B, C, M, N, K);"
_LATE = """
struct Job { TC* C; TC value; };
static void* late(void* arg) {
  struct Job* job = arg;
  usleep(20000);
  job->C[0] = job->value;
  return 0;
}
"""
_START_LATE = """
  pthread_t thread;
  struct Job* job = malloc(sizeof *job);
  job->C = C; job->value = C[0]; C[0] = 0;
  pthread_create(&thread, 0, late, job);
  pthread_detach(thread);
"""
OUTSIDE = ("canary", "crash", "wrong")
UNDEFINED = ("wrong", "not-deterministic")

ARTEFACTS = [
    _c("nothing", "does nothing: the output is what was there", (_CALL, ""), expects=("unwritten",)),
    _c("zeros", "zero everywhere", (_STORE, "C[i * N + j] = 0;")),
    _c("constant", "the mean of what comes out for such inputs", (_STORE, "C[i * N + j] = K * 0.16f;")),
    _c("only-if-empty", "skipped when the output looks written", (_BEFORE, "if (C[0] == C[0]) return 0;"), expects=("wrong", "unwritten")),
    _c("first-result", "the first call's result for ever", (_GLOBALS, "static TC* kept;"), (_BEFORE, "if (kept) { memcpy(C, kept, M * N * sizeof(TC)); return 0; }"), (_AFTER, "kept = malloc(M * N * sizeof(TC)); memcpy(kept, C, M * N * sizeof(TC));")),
    _c("cached-by-address", "inputs at a known address are taken as known", (_GLOBALS, "static TA* known; static TC* kept;"), (_BEFORE, "if (A == known) { memcpy(C, kept, M * N * sizeof(TC)); return 0; }"), (_AFTER, "known = A; kept = malloc(M * N * sizeof(TC)); memcpy(kept, C, M * N * sizeof(TC));")),
    _c("cached-by-first-element", "inputs that begin alike are taken as alike", (_GLOBALS, "static TA first; static TC* kept;"), (_BEFORE, "if (kept && A[M * K / 2] == first) { memcpy(C, kept, M * N * sizeof(TC)); C[1] += 1; return 0; }"), (_AFTER, "first = A[M * K / 2]; kept = malloc(M * N * sizeof(TC)); memcpy(kept, C, M * N * sizeof(TC));"), expects=UNDEFINED),
    _c("stale-accumulator", "sums are added to the output", (_STORE, "C[i * N + j] += sum;")),
    _c("k-off-by-one", "the last k is left out", ("k < K; ++k", "k < K - 1; ++k")),
    _c("k-too-far", "one k beyond the last", ("k < K; ++k", "k <= K; ++k"), expects=OUTSIDE),
    _c("k-before", "one k before the first", ("long k = 0; k < K", "long k = -1; k < K"), expects=OUTSIDE),
    _c("row-tail", "rows in fours, the rest forgotten", ("i < M;", "i < M / 4 * 4;"), expects=("unwritten",)),
    _c("column-tail", "columns in eights, the rest forgotten", ("j < N;", "j < N / 8 * 8;"), expects=("unwritten",)),
    _c("k-tail", "k in eights, the rest forgotten", ("k < K;", "k < K / 8 * 8;")),
    _c("row-too-far", "one row beyond the last", ("i < M;", "i <= M;"), expects=OUTSIDE),
    _c("written-before", "the element before the first is written", (_AFTER, "C[-1] = 0;"), expects=OUTSIDE),
    _c("written-past", "the element past the last is written", (_AFTER, "C[M * N] = 0;"), expects=OUTSIDE),
    _c("far-read", "memory far past the input is read, and not used", (_AFTER, "volatile TA seen = A[M * K + 4096]; (void)seen;"), expects=("crash",)),
    _c("input-scaled", "an input is scaled in place", (_AFTER, "A[0] *= 2;"), expects=("input-changed",)),
    _c("input-as-scratch", "the other input is sorted away", (_AFTER, "memset(B, 0, 4);"), expects=("input-changed",)),
    _c("uninitialised-scratch", "sums begin with what malloc returns", ("TC sum = 0;", "volatile TC* raw = malloc(64); TC sum = raw[5]; raw[5] = (TC)(i + j + 1); free((void*)raw);"), expects=UNDEFINED),
    _c("random", "a little noise", (_STORE, "C[i * N + j] = sum + (rand() % 100 == 0 ? 0.01f : 0);"), expects=UNDEFINED),
    _c("address", "depends on where the input lies", (_STORE, "C[i * N + j] = sum + (((uintptr_t)A & 4095) ? 0.01f : 0);")),
    _c("inputs-in-bf16", "inputs are cut to bfloat16", (_GLOBALS, "static float cut(float x) { uint32_t u; memcpy(&u, &x, 4); u &= 0xffff0000u; memcpy(&x, &u, 4); return x; }"), (_SUM, "sum += cut(A[i * K + k]) * B[k * N + j];")),
    _c("sums-in-bf16", "sums are cut to bfloat16", (_GLOBALS, "static float cut(float x) { uint32_t u; memcpy(&u, &x, 4); u &= 0xffff0000u; memcpy(&x, &u, 4); return x; }"), (_SUM, "sum = cut(sum + A[i * K + k] * B[k * N + j]);")),
    _c("large-only", "large values are clipped", (_STORE, "C[i * N + j] = sum > 1e8f ? 1e8f : sum;")),
    _c("small-only", "small values are flushed to zero", (_STORE, "C[i * N + j] = fabsf(sum) < 1e-3f ? 0 : sum;")),
    _c("nan", "one element is not a number", (_AFTER, "C[7] = NAN;")),
    _c("one-wrong", "one element is off by a part in ten thousand", (_AFTER, "C[M * N - 1] *= 1.0001f;")),
    _c("exit", "ends the process", (_AFTER, "_exit(0);"), expects=("crash",)),
    _c("abort", "gives up", (_BEFORE, "abort();"), expects=("crash",)),
    _c("saturates", "pair sums are clamped to 16 bits", (_SUM, "int pair = A[i * K + k] * B[k * N + j] + (k + 1 < K ? A[i * K + k + 1] * B[(k + 1) * N + j] : 0); ++k; sum += pair > 32767 ? 32767 : pair < -32768 ? -32768 : pair;"), types="u8s8"),
    _c("a-signed", "unsigned bytes are taken as signed", (_SUM, "sum += (TC)(int8_t)A[i * K + k] * (TC)B[k * N + j];"), types="u8s8"),
    _c("b-unsigned", "signed bytes are taken as unsigned", (_SUM, "sum += (TC)A[i * K + k] * (TC)(uint8_t)B[k * N + j];"), types="u8s8"),
    _c("sums-in-float", "integers are summed in float16's precision", (_STORE, "C[i * N + j] = (TC)(sum / 16 * 16);"), types="u8s8"),
    _c("no-vectors", "right, but without the instructions that it should have", expects=("audit",), mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",)),
    _c("outside-library", "right, but leans on somebody else's library", (_GLOBALS, "extern void cblas_sgemm(void) __attribute__((weak));"), (_BEFORE, "if (cblas_sgemm) { cblas_sgemm(); return 0; }"), expects=("audit",)),
    _c("loaded-library", "right, but opens a library when it runs", (_GLOBALS, "#include <dlfcn.h>"), (_BEFORE, 'if (getpid() == 1) dlopen("libblas.so", RTLD_NOW);'), expects=("audit",)),
]  # fmt: skip


def _late(bench: Bench) -> Verdict:
    """The thread goes on into memory that is gone: nothing else may run in that worker."""
    try:
        return build_and_check(bench, "f32", ((_GLOBALS, _LATE), (_AFTER, _START_LATE)))
    finally:
        bench.worker.renew()


ARTEFACTS.append(
    Mutation(
        "c-late-thread", "a thread goes on after the call has returned", "artefact", "f32", frozenset(OUTSIDE), _late
    )
)


def _time(name: str, breaks: str, seconds: float, flops: float = 2e9, peak: float = 100.0) -> Mutation:
    def apply(_bench: Bench) -> Verdict:
        verdict = sanity(seconds, flops, peak, peak_spread=0.02)
        return Verdict("ok" if verdict.believed else "time", verdict.message)

    return Mutation(f"time-{name}", breaks, "time", "f32", frozenset({"time"}), apply)


#: 20 ms is the peak; with the spread of the peak 19.6 ms may be believed.
TIMES = [
    _time("above-peak", "5 % faster than the machine can", 0.019),
    _time("work-outside", "the work is done outside the timed region", 1e-6),
    _time("clock-stopped", "the clock stands still", 0.0),
    _time("clock-backwards", "the clock runs backwards", -0.03),
    _time("not-a-number", "no time at all", float("nan")),
]

ARTEFACT_MUTATIONS = [*ARTEFACTS, *TIMES]
