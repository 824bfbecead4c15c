// What translated kernels run on: a thread with PTX's ways of exchanging values, and PTX's arithmetic.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "../../emulation/fibres.h"

// An asynchronous copy into shared memory: here it is made when it is waited for, and no earlier.
struct Copy {
  uint8_t* to;
  const uint8_t* from;
  uint32_t count, taken, group;
};

struct Thread : BlockThread {
  uint8_t* shared_memory;
  Copy copies[128];
  uint32_t copies_waiting = 0, groups = 0;

  void restart() {
    BlockThread::restart();
    copies_waiting = groups = 0;
  }

  uint8_t* shared(uint64_t offset) const { return shared_memory + uint32_t(offset); }
  uint64_t of_shared(uint64_t address) const { return address - reinterpret_cast<uint64_t>(shared_memory); }

  void copy(uint8_t* to, const uint8_t* from, uint32_t count, uint32_t taken) {
    if (copies_waiting == sizeof copies / sizeof *copies) fail("too many copies that nobody waits for");
    copies[copies_waiting++] = {to, from, count, taken, groups};
  }
  void end_group() { groups++; }
  // Waits for all groups of copies but the last `left`.
  void await_groups(uint32_t left) { await_copies(groups > left ? groups - left : 0); }
  void await_copies(uint32_t before = ~0u) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < copies_waiting; i++) {
      const Copy each = copies[i];
      if (each.group >= before) {
        copies[kept++] = each;
        continue;
      }
      std::memset(each.to, 0, each.count);
      std::memcpy(each.to, each.from, each.taken);
    }
    copies_waiting = kept;
  }

  // PTX ISA, shfl.sync: `limits` has the segments' mask above bit 8 and the last lane of a segment below.
  uint32_t shuffled(uint32_t value, int from, bool inside) {
    auto* shown = show(value);
    return inside ? uint32_t(shown[from][0]) : value;
  }
  int first(uint32_t limits) const { return laneid() & limits >> 8 & 31; }
  int last(uint32_t limits) const { return first(limits) | (limits & 31 & ~(limits >> 8 & 31)); }
  uint32_t shuffle_bfly(uint32_t value, uint32_t mask, uint32_t limits, bool& inside) {
    int from = laneid() ^ mask;
    return shuffled(value, from, inside = from <= last(limits));
  }
  uint32_t shuffle_down(uint32_t value, uint32_t distance, uint32_t limits, bool& inside) {
    int from = laneid() + distance;
    return shuffled(value, from, inside = from <= last(limits));
  }
  uint32_t shuffle_up(uint32_t value, uint32_t distance, uint32_t limits, bool& inside) {
    int from = int(laneid()) - int(distance);
    return shuffled(value, from, inside = from >= int(limits & 31 ? last(limits) : first(limits)));
  }
  uint32_t shuffle_idx(uint32_t value, uint32_t lane, uint32_t limits, bool& inside) {
    int from = first(limits) | (lane & ~(limits >> 8) & 31);
    return shuffled(value, from, inside = from <= last(limits));
  }

  uint32_t votes(bool vote) {
    auto* shown = show(vote);
    uint32_t all = 0;
    for (int lane = 0; lane < kWarp; lane++) all |= uint32_t(shown[lane][0]) << lane;
    return all;
  }

  // PTX ISA, ldmatrix: lanes 8 i to 8 i + 7 give the rows of matrix i.
  void load_matrices(int count, bool turned, const uint8_t* row, uint32_t* got) {
    auto* shown = show(reinterpret_cast<uint64_t>(row));
    const int at = laneid() / 4, pair = laneid() % 4 * 2;
    for (int i = 0; i < count; i++) {
      auto half = [&](int r, int c) {
        const auto* from = reinterpret_cast<const uint8_t*>(shown[8 * i + r][0]);
        if (reinterpret_cast<uint64_t>(from) % 16) fail("a row of ldmatrix is not aligned", from);
        uint16_t bits;
        std::memcpy(&bits, from + 2 * c, 2);
        return uint32_t(bits);
      };
      got[i] = turned ? half(pair, at) | half(pair + 1, at) << 16 : half(at, pair) | half(at, pair + 1) << 16;
    }
  }

  // PTX ISA, mma.m16n8k8 and m16n8k16: lane 4 r + c has rows r and r + 8 of A and columns r of B.
  template <class Element, int kDeep>
  void multiply(const uint32_t* a, const uint32_t* b, float* d, Element element) {
    auto* shown = show(a[0] | uint64_t(a[1]) << 32, a[2] | uint64_t(a[3]) << 32, b[0] | uint64_t(b[1]) << 32);
    constexpr int kHeld = kDeep / 8;  // neighbours in a register
    auto word = [&](int lane, int place, int i) { return uint32_t(shown[lane][place + i / 2] >> (i % 2 * 32)); };
    for (int i = 0; i < 4; i++) {
      const int row = laneid() / 4 + i / 2 * 8, column = laneid() % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < kDeep; k++) {
        const int beside = k % (kDeep / 2) / kHeld, far = k / (kDeep / 2), held = k % kHeld;
        sum += element(word(row % 8 * 4 + beside, 0, row / 8 + far * 2), held) *
               element(word(column * 4 + beside, 2, far), held);
      }
      d[i] += sum;
    }
  }
  void multiply_tf32(const uint32_t* a, const uint32_t* b, float* d);
  void multiply_half(const uint32_t* a, const uint32_t* b, float* d);
  void multiply_bfloat(const uint32_t* a, const uint32_t* b, float* d);
};

// Registers hold bits; instructions say what they are.
template <class T, class R>
T get(R bits) {
  T value;
  static_assert(sizeof(T) <= sizeof(R) || std::is_integral_v<T>);
  if constexpr (sizeof(T) > sizeof(R)) return T(bits);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
inline bool get<bool, bool>(bool value) { return value; }

template <class R, class T>
void put(R& to, T value) {
  if constexpr (std::is_same_v<R, bool>) {
    to = value;
  } else if constexpr (std::is_integral_v<T>) {
    to = R(value);
  } else {
    R bits = 0;
    static_assert(sizeof value <= sizeof bits);
    std::memcpy(&bits, &value, sizeof value);
    to = bits;
  }
}

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
void store(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}
template <class P>
P aligned(P address, uint64_t size) {
  if (reinterpret_cast<uint64_t>(address) % size) fail("an address is not aligned", address);
  return address;
}

template <class T>
bool unordered(T a, T b) {
  return a != a || b != b;
}
template <class T>
T min_of(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
  return a < b ? a : b;
}
template <class T>
T max_of(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return a > b ? a : b;
}
template <class T>
T div_of(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    if (b == 0) fail("a division by zero");
  return T(a / b);
}
template <class T>
T rem_of(T a, T b) {
  if (b == 0) fail("a division by zero");
  return T(a % b);
}
template <class T>
T abs_of(T a) {
  return a < 0 ? T(-a) : std::is_integral_v<T> ? a : T(std::fabs(double(a)));
}
template <class T>
T neg_of(T a) {
  return T(-a);
}
template <class T>
T rcp_of(T a) {
  return T(1) / a;
}
template <class T>
T sqrt_of(T a) {
  return std::sqrt(a);
}
template <class T>
T rsqrt_of(T a) {
  return T(1) / std::sqrt(a);
}
inline float ex2_of(float a) { return std::exp2(a); }
inline float lg2_of(float a) { return std::log2(a); }
inline float sin_of(float a) { return std::sin(a); }
inline float cos_of(float a) { return std::cos(a); }
inline float tanh_of(float a) { return std::tanh(a); }
template <class T>
uint32_t popc_of(T a) {
  return __builtin_popcountll(a);
}
template <class T>
uint32_t clz_of(T a) {
  return a == 0 ? 8 * sizeof a : __builtin_clzll(a) - (64 - 8 * sizeof a);
}
inline uint32_t brev_of(uint32_t a) {
  uint32_t turned = 0;
  for (int i = 0; i < 32; i++) turned |= (a >> i & 1) << (31 - i);
  return turned;
}

template <class T>
T low_product(T a, T b) {
  if constexpr (std::is_integral_v<T>) return T(std::make_unsigned_t<T>(a) * uint64_t(std::make_unsigned_t<T>(b)));
  return T(a * b);
}
template <class T>
T hi_product(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T(Wide(a) * Wide(b) >> (8 * sizeof a));
}
inline int64_t wide_product(int32_t a, int32_t b) { return int64_t(a) * b; }
inline uint64_t wide_product(uint32_t a, uint32_t b) { return uint64_t(a) * b; }
inline int32_t wide_product(int16_t a, int16_t b) { return int32_t(a) * b; }
inline uint32_t wide_product(uint16_t a, uint16_t b) { return uint32_t(a) * b; }

// PTX ISA, dp2a and dp4a: parts of `a` times bytes of `b`, from the lowest on.
template <class A, class B>
uint32_t dot(uint32_t a, uint32_t b, uint32_t c) {
  for (size_t i = 0; i < 4 / sizeof(A); i++) c += uint32_t(int32_t(A(a >> 8 * sizeof(A) * i)) * int32_t(B(b >> 8 * i)));
  return c;
}

inline float fma_near(float a, float b, float c) { return std::fma(a, b, c); }
inline double fma_near(double a, double b, double c) { return std::fma(a, b, c); }
inline _Float16 fma_near(_Float16 a, _Float16 b, _Float16 c) { return _Float16(std::fma(float(a), float(b), float(c))); }
// Of two floats and a float the exact value is a double's, but for what a rounding downwards does not see.
inline float fma_down(float a, float b, float c) {
  const double exact = double(a) * b + c;
  const float near = float(exact);
  return near > exact ? std::nextafter(near, -INFINITY) : near;
}
inline float fma_up(float a, float b, float c) {
  const double exact = double(a) * b + c;
  const float near = float(exact);
  return near < exact ? std::nextafter(near, INFINITY) : near;
}

template <class T>
T left(T a, uint32_t by) {
  return by >= 8 * sizeof a ? T(0) : T(std::make_unsigned_t<T>(a) << by);
}
template <class T>
T right(T a, uint32_t by) {
  if (by >= 8 * sizeof a) return a < 0 ? T(-1) : T(0);
  return T(a >> by);
}
inline uint32_t funnel(uint32_t low, uint32_t high, uint32_t by, bool to_left, bool wraps) {
  by = wraps ? by & 31 : by > 32 ? 32 : by;
  const uint64_t both = uint64_t(high) << 32 | low;
  return to_left ? uint32_t(both << by >> 32) : uint32_t(both >> by);
}
template <class T>
T field(T a, uint32_t from, uint32_t count) {
  from &= 255, count &= 255;
  if (count == 0) return 0;
  T value = right(a, from);
  constexpr uint32_t bits = 8 * sizeof a;
  return count >= bits ? value : right(left(value, bits - count), bits - count);
}
template <class T>
T insert(T a, T b, uint32_t from, uint32_t count) {
  from &= 255, count &= 255;
  const T mask = count >= 8 * sizeof a ? T(-1) : T((T(1) << count) - 1);
  return T((b & ~left(mask, from)) | left(T(a & mask), from));
}
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t choice) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t which = choice >> 4 * i & 15;
    uint32_t byte = both >> 8 * (which & 7) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline uint32_t logical(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; i++)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}

template <class T>
T rni_of(T a) {
  return std::nearbyint(a);
}
template <class T>
T rzi_of(T a) {
  return std::trunc(a);
}
template <class T>
T rmi_of(T a) {
  return std::floor(a);
}
template <class T>
T rpi_of(T a) {
  return std::ceil(a);
}
template <class T, class F>
T integer(F a) {
  if (a != a) return 0;
  if (a <= F(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (a >= F(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return T(a);
}
template <class T>
T saturated(T a) {
  return a != a ? T(0) : a < 0 ? T(0) : a > 1 ? T(1) : a;
}

inline uint32_t bits_of(float a) { return __builtin_bit_cast(uint32_t, a); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t half_bits(float a) { return __builtin_bit_cast(uint16_t, _Float16(a)); }
inline float of_half(uint32_t bits) { return float(__builtin_bit_cast(_Float16, uint16_t(bits))); }
inline uint32_t bfloat_bits(float a) {
  const uint32_t bits = bits_of(a);
  return a != a ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// Half away from zero, to ten bits.
inline uint32_t tf32_bits(float a) { return std::isfinite(a) ? (bits_of(a) + 0x1000) & 0xffffe000 : bits_of(a); }

inline void Thread::multiply_tf32(const uint32_t* a, const uint32_t* b, float* d) {
  // The lowest thirteen bits do not count.
  auto element = [](uint32_t word, int) { return float_of(word & 0xffffe000); };
  multiply<decltype(element), 8>(a, b, d, element);
}
inline void Thread::multiply_half(const uint32_t* a, const uint32_t* b, float* d) {
  auto element = [](uint32_t word, int held) { return of_half(word >> 16 * held & 0xffff); };
  multiply<decltype(element), 16>(a, b, d, element);
}
inline void Thread::multiply_bfloat(const uint32_t* a, const uint32_t* b, float* d) {
  auto element = [](uint32_t word, int held) { return float_of((word >> 16 * held & 0xffff) << 16); };
  multiply<decltype(element), 16>(a, b, d, element);
}

template <class T, class F>
T exchanged(uint8_t* at, F change) {
  const T before = load<T>(aligned(at, sizeof(T)));
  store(at, T(change(before)));
  return before;
}
template <class T>
T atomic_add(uint8_t* at, T value) {
  return exchanged<T>(at, [&](T before) { return before + value; });
}
template <class T>
T atomic_min(uint8_t* at, T value) {
  return exchanged<T>(at, [&](T before) { return min_of(before, value); });
}
template <class T>
T atomic_max(uint8_t* at, T value) {
  return exchanged<T>(at, [&](T before) { return max_of(before, value); });
}
template <class T>
T atomic_and(uint8_t* at, T value) {
  return exchanged<T>(at, [&](T before) { return before & value; });
}
template <class T>
T atomic_or(uint8_t* at, T value) {
  return exchanged<T>(at, [&](T before) { return before | value; });
}
template <class T>
T atomic_inc(uint8_t* at, T last) {
  return exchanged<T>(at, [&](T before) { return before >= last ? 0 : before + 1; });
}
template <class T>
T atomic_exch(uint8_t* at, T value) {
  return exchanged<T>(at, [&](T) { return value; });
}
template <class T>
T atomic_cas(uint8_t* at, T expected, T value) {
  return exchanged<T>(at, [&](T before) { return before == expected ? value : before; });
}
