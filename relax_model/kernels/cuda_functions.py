"""What TVM has no operator for on NVIDIA's GPUs, as functions in CUDA C++ that the compiler puts before the kernels.

Fragments' places, of what a lane holds of a matrix, are those of PTX ISA: mma.m16n8k8, mma.m16n8k16 and ldmatrix, whose
rows of 16 bytes are eight values of float16 or four of TF32.
"""

from __future__ import annotations

SOURCE = """
static __device__ __forceinline__ float mlc_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
static __device__ __forceinline__ void mlc_mma_tf32(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                                    unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ float mlc_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
static __device__ __forceinline__ unsigned mlc_half2(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
static __device__ __forceinline__ unsigned mlc_pair(const void* halves) { return *(const unsigned*)halves; }
static __device__ __forceinline__ unsigned mlc_shared(const void* address) {
  return (unsigned)__cvta_generic_to_shared(address);
}
static __device__ __forceinline__ void mlc_matrices_2_turned(unsigned* fragments, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragments[0]), "=r"(fragments[1])
               : "r"(mlc_shared(row)));
}
static __device__ __forceinline__ void mlc_matrices_4(unsigned* fragments, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(mlc_shared(row)));
}
static __device__ __forceinline__ void mlc_matrices_4_turned(unsigned* fragments, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
               : "r"(mlc_shared(row)));
}
static __device__ __forceinline__ void mlc_mma_half(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                                    unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void mlc_copy_16(const void* to_shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(mlc_shared(to_shared)), "l"(from));
}
static __device__ __forceinline__ void mlc_await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
"""
