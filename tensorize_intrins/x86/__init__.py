"""x86 families: AVX2, AVX-512, VNNI, BF16."""
