"""The grammar of a request line: words people write for a matrix product.

A line is a bag of phrases in any order; each phrase says one thing. Saying a thing twice is fine, saying two
different things is an error. Phrases, roughly::

    operator   gemm | matmul | mm | bmm | batched matmul | matrix multiply | gemv | sgemm
    shape      1024x1024x1024 | 64 by 64 by 64 | 12 x 128x64x128 (batch first) | (64, 64, 64) | 1024^3
               M=64 N=32 K=16 | M=N=K=1k | m64n32k16 | batch 12 | batch=12       (1,024 and 1k are 1024)
    dtypes     f32 | bf16 | int8 | u8s8 | uint8 x int8 | u8s8s32 | bf16 -> bf16 | bf16 to f32 | f32 output
    layout     A transposed | transposed B | both transposed | B^T | NN | NT | TN | TT
    operand B  constant B | weights | prepacked | variable B
    epilogue   with bias | with relu | with bias and relu                        (applied in the order said)
    effort     2 threads | single thread | threads=2 | 64 trials | zero trials | no tuning
    hardware   on this CPU | on this machine | on host | on zen5

``gemv`` has M=1, and a two-number shape after it is KxN, the stored B.
"""

from qimeng_tvm.grammar.reader import read

__all__ = ["read"]
