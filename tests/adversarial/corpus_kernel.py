"""Replies whose Python is harmless and whose kernel is wrong, greedy or something else than it says."""

from base import Entry, at_end, in_root, spoiled, with_llvm

STEP = "acc[T.ramp(slot(x, y), 1, LANES)] = step(A, B, acc, x, y, ko * ku + ki)"
LOAD = "C.vload([i, j * LANES], VEC)"
FMA = "            acc.vload([slot(x, y)], VEC),\n"
RUN = ("numbers",)
ANY = ("numbers", "audit", "build")

BOUNDS = (
    Entry("reads a row before A", RUN, "", spoiled(("s.a_index(i, k)", "s.a_index(i - 1, k)"))),
    Entry("reads a row behind A", RUN, "", spoiled(("s.a_index(i, k)", "s.a_index(i + 1, k)"))),
    Entry("reads one k behind", RUN, "", spoiled(("b.vload([k, j * LANES], VEC)", "b.vload([k + 1, j * LANES], VEC)"))),
    Entry("reads a page behind", RUN, "", spoiled(("b.vload([k, j * LANES], VEC)", "b.vload([k + 4096, j * LANES], VEC)"))),
    Entry("reads one lane off", RUN, "", spoiled(("b.vload([k, j * LANES], VEC)", "b.vload([k, j * LANES + 1], VEC)"))),
    Entry("writes one lane past C", RUN, "", spoiled(("C[i, T.ramp(j * LANES, 1, LANES)]", "C[i, T.ramp(j * LANES + 1, 1, LANES)]"))),
    Entry("writes a row past C", ("numbers", "build"), "", at_end("C[mr, T.ramp(0, 1, LANES)] = acc.vload([0], VEC)")),
    Entry("writes into A", ANY, "", at_end("A[0, 0] = T.float32(0)")),
    Entry("writes into B", ANY, "", at_end("B[0, 0] = T.float32(0)")),
    Entry("assumes packed rows of A", ("build", *RUN), "", spoiled(("strides=s.a_strides(sa)", "strides=s.a_strides(kc)"))),
    Entry("assumes packed rows of C", ("numbers", "build"), "", spoiled(("strides=[sc, 1]", "strides=[nr, 1]"))),
    Entry("forgets that operands have offsets", ("numbers", "build"), "", spoiled(("offset_factor=1", "offset_factor=16"))),
)  # fmt: skip

WRONG = (
    Entry("drops the last k", RUN, "", spoiled(("for ko in range(kc // ku)", "for ko in range(kc // ku - 1)"))),
    Entry("repeats a k", RUN, "", spoiled(("ko * ku + ki)", "ko * ku)"))),
    Entry("ignores what C held", RUN, "", spoiled((LOAD, "T.broadcast(T.float32(0), LANES)"))),
    Entry("subtracts", RUN, "", spoiled((FMA, "            tirx.const(-1.0, 'float32') * acc.vload([slot(x, y)], VEC),\n"))),
    Entry("stores only when it likes", RUN, "", spoiled(("for i in T.unroll(mr):\n                for j in T.unroll(nv):\n                    C[i,", "for i in T.unroll(mr - 1):\n                for j in T.unroll(nv):\n                    C[i,"))),
    Entry("writes nothing", ("numbers", "audit", "build"), "", spoiled(("                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VEC)", "                    T.evaluate(0)"))),
    Entry("wrong by a thousandth", RUN, "", spoiled(("tirx.Broadcast(load(a, s.a_index(i, k)), LANES)", "tirx.Broadcast(load(a, s.a_index(i, k)) * tirx.const(1.001, 'float32'), LANES)"))),
    Entry("wrong by a rounding too many", RUN, "", spoiled(("tirx.Broadcast(load(a, s.a_index(i, k)), LANES)", "tirx.Broadcast(load(a, s.a_index(i, k)) * tirx.const(1.00001, 'float32'), LANES)"))),
    Entry("cuts A to bfloat16", RUN, "", spoiled(("tirx.Broadcast(load(a, s.a_index(i, k)), LANES)", "tirx.reinterpret(VEC, tirx.bitwise_and(tirx.reinterpret('int32x8', tirx.Broadcast(load(a, s.a_index(i, k)), LANES)), tirx.Broadcast(tirx.const(-65536, 'int32'), LANES)))"))),
    Entry("sums in half precision", ANY, "", spoiled((STEP, "acc[T.ramp(slot(x, y), 1, LANES)] = tirx.Cast(VEC, tirx.Cast('float16x8', step(A, B, acc, x, y, ko * ku + ki)))"))),
    Entry("leaves out a row of the tile", RUN, "", spoiled(("for x in T.unroll(outer)", "for x in T.unroll(outer - 1)"))),
    Entry("right for small tiles only", RUN, "", spoiled(("            for ko in range(kc // ku):", "            for ko in range(kc // ku if mr < 3 else kc // ku - 1):"))),
    Entry("right for even depths only", RUN, "", spoiled(("ko * ku + ki)", "ko * ku + ki if kc % 2 == 0 else 0)"))),
    Entry("right for one row only", RUN, "", spoiled(("s.a_index(i, k)", "s.a_index(0, k)"))),
    Entry("right without unrolling only", RUN, "", spoiled(("ko * ku + ki)", "ko * ku + ki if ku == 1 else ko)"))),
    Entry("right in memory only", RUN, "", spoiled(("ko * ku + ki)", "ko * ku + ki if c_local == 0 else 0)"))),
    Entry("right without a panel only", RUN, "", spoiled(("ko * ku + ki)", "ko * ku + ki if a_panel == 0 else 0)"))),
    Entry("right without prefetching only", RUN, "", spoiled(("ko * ku + ki)", "ko * ku + ki if ahead == 0 else 0)"))),
)  # fmt: skip

GREEDY = (
    Entry("an endless loop at run time", ("numbers",), "no answer within", in_root("for spin in range(1 << 30):\n    for more in range(1 << 20):\n        acc[0] = acc[0] * T.float32(0.5) + A[0, 0]")),
    Entry("unrolls a million", ("build", "numbers", "audit"), "", in_root("for spin in T.unroll(1 << 20):\n    acc[0] = acc[0] + A[0, 0]")),
    Entry("an enormous scratch", ANY, "", spoiled(("acc = T.alloc_buffer((mr * nr,)", "acc = T.alloc_buffer((mr * nr + 4000000000,)"))),
    Entry("spills", ("audit",), "spill", spoiled(
        ("acc = T.alloc_buffer((mr * nr,)", "acc = T.alloc_buffer((2 * mr * nr,)"),
        ("            for ko in range(kc // ku):\n", "            for i in T.unroll(mr * nv):\n                acc[T.ramp((mr * nv + i) * LANES, 1, LANES)] = T.broadcast(T.float32(0), LANES)\n            for ko in range(kc // ku):\n"),
        ("acc[T.ramp(slot(x, y), 1, LANES)]", "acc[T.ramp(slot(x, y) + (ki % 2) * mr * nr, 1, LANES)]"),
        ("acc.vload([slot(x, y)], VEC)", "acc.vload([slot(x, y) + (k % 2) * mr * nr], VEC)"),
        ("acc.vload([(i * nv + j) * LANES], VEC)", "acc.vload([(i * nv + j) * LANES], VEC) + acc.vload([(mr * nv + i * nv + j) * LANES], VEC)"),
    )),
    Entry("no vectors at all", ("audit", "numbers", "build"), "", spoiled((STEP, "acc[slot(x, y)] = acc[slot(x, y)] + A[0, 0] * B[0, 0]"))),
    Entry("another instruction than it says", ("audit", "numbers"), "", spoiled(("return tirx.call_llvm_pure_intrin(\n            VEC,\n            \"llvm.fma\",\n", "return tirx.max(\n"), (FMA, ""))),
)  # fmt: skip

LLVM = (
    Entry("an intrinsic that was not given", ("source",), "not among the intrinsics", spoiled(("llvm.fma", "llvm.sqrt"))),
    Entry("an intrinsic by a computed name", ("source",), "literal", spoiled(('"llvm.fma"', '"llvm." + str(mr)'))),
    Entry("calls memcpy", ("source",), "call_extern calls", in_root("T.evaluate(T.call_extern('int32', 'memcpy', C.data, A.data, 64))")),
    Entry("calls a BLAS", ("source",), "call_extern calls", in_root("T.evaluate(T.call_extern('int32', 'cblas_sgemm', C.data))")),
    Entry("calls system", ("source",), "call_extern calls", in_root("T.evaluate(T.call_extern('int32', 'system', 'id'))")),
    Entry("inline assembly", ("source",), "asm", with_llvm("define void @f() {\n  call void asm sideeffect \\\"syscall\\\", \\\"\\\"()\n  ret void\n}")),
    Entry("module assembly", ("source",), "LLVM text", with_llvm("module asm \\\"evil\\\"")),
    Entry("a global", ("source",), "LLVM text", with_llvm("@state = global i32 0")),
    Entry("a constructor", ("source",), "LLVM text", with_llvm("@llvm.global_ctors = appending global [0 x i32] zeroinitializer")),
    Entry("a call out of LLVM text", ("source",), "LLVM text", with_llvm("declare i32 @system(ptr)\ndefine i32 @f(ptr %x) {\n  %r = call i32 @system(ptr %x)\n  ret i32 %r\n}")),
    Entry("a pointer from a number", ("source",), "LLVM text", with_llvm("define i32 @f() {\n  %p = inttoptr i64 4096 to ptr\n  %r = load i32, ptr %p\n  ret i32 %r\n}")),
    Entry("an alias", ("source",), "LLVM text", with_llvm("@a = alias i32, ptr @b")),
    Entry("another attribute", ("source",), "attribute", in_root("T.attr(0, 'pragma_import_c', 'int x;')")),
    Entry("LLVM text from a parameter", ("source",), "constant", spoiled(("            T.writes(C[0:mr, 0:nr])\n", "            T.writes(C[0:mr, 0:nr])\n            T.attr(0, \"pragma_import_llvm\", str(mr))\n"))),
    Entry("LLVM text that is not LLVM", ("source", "numbers", "build"), "", with_llvm("this is not LLVM")),
    Entry("a function that loops for ever", ("source", "numbers", "audit"), "", with_llvm("define <8 x float> @qimeng_spin(<8 x float> %x) alwaysinline {\nentry:\n  br label %l\nl:\n  br label %l\n}")),
)  # fmt: skip

ENTRIES = (*BOUNDS, *WRONG, *GREEDY, *LLVM)
