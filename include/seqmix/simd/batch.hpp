// The vocabulary of every kernel: xsimd batches, moves between memory and registers, register tiles.
//
// What takes a batch and shares its name with a function of xsimd is either that function (a using-declaration) or a
// function object: an unqualified call would otherwise be ambiguous, because argument-dependent lookup finds xsimd's.
#pragma once

#include <seqmix/core/view.hpp>
#include <seqmix/simd/arch.hpp>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <xsimd/xsimd.hpp>

#if !defined(XSIMD_VERSION_MAJOR) || XSIMD_VERSION_MAJOR < 13
#error "seqmix needs xsimd 13 or newer; README says where Debian 12 gets it from"
#endif

/// Put SEQMIX_ALWAYS_INLINE before the return type of a function, and SEQMIX_INLINE_LAMBDA after the parameter list of
/// a lambda: `[&](auto row) SEQMIX_INLINE_LAMBDA { ... }` or `... SEQMIX_INLINE_LAMBDA -> T { ... }`. Such a lambda can be
/// neither `mutable` nor `noexcept`: GCC wants the attribute after these, Clang before.
/// Register tiles need both: an accumulator array whose address reaches a call that is not inlined lives in memory.
#if defined(__GNUC__) || defined(__clang__)
#define SEQMIX_ALWAYS_INLINE inline __attribute__((always_inline))
#define SEQMIX_INLINE_LAMBDA __attribute__((always_inline))
#else
#define SEQMIX_ALWAYS_INLINE inline
#define SEQMIX_INLINE_LAMBDA
#endif

namespace seqmix::inline SEQMIX_ARCH {

/// One SIMD register of T. Arch is the instruction set; the default is the best that the compiler flags allow.
template <class T, class Arch = xsimd::default_arch>
using Batch = xsimd::batch<T, Arch>;

/// The result of comparing two batches, one truth value per lane.
template <class T, class Arch = xsimd::default_arch>
using BatchMask = xsimd::batch_bool<T, Arch>;

/// How many T one batch holds.
template <class T, class Arch = xsimd::default_arch>
inline constexpr Index lanes = static_cast<Index>(xsimd::batch<T, Arch>::size);

/// fma(a, b, c) = a * b + c, fms = a * b - c, fnma = c - a * b; rounded once where the instruction set can.
/// select(mask, a, b) = mask ? a : b per lane. reduce_add and reduce_max combine the lanes of one batch in a fixed order;
/// reduce_max does not promise to propagate NaN.
using xsimd::fma;
using xsimd::fms;
using xsimd::fnma;
using xsimd::reduce_add;
using xsimd::reduce_max;
using xsimd::select;

/// How many SIMD registers there are: what a register tile may use.
template <class Arch = xsimd::default_arch>
inline constexpr Index register_count =
    std::is_base_of_v<xsimd::avx512f, Arch> || std::is_base_of_v<xsimd::neon64, Arch> ? 32 : 16;

/// All lanes equal `value`.
template <class Arch = xsimd::default_arch, class T>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> broadcast(T value) {
  return Batch<T, Arch>(value);
}

/// source[0 .. lanes), any alignment. (xsimd's aligned load asserts in debug builds and is no faster on current CPUs.)
template <class Arch = xsimd::default_arch, class T>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> load(const T* source) {
  return Batch<T, Arch>::load_unaligned(source);
}

/// Calls f(std::integral_constant<Index, I>{}) for I = 0 .. N-1, without a loop: the index is a constant expression
/// in f, so arrays indexed with it stay in registers. Mark f with SEQMIX_INLINE_LAMBDA.
template <Index N, class F>
SEQMIX_ALWAYS_INLINE void unroll(F&& f) {
  [&]<Index... I>(std::integer_sequence<Index, I...>)
      SEQMIX_INLINE_LAMBDA { (f(std::integral_constant<Index, I>{}), ...); }(std::make_integer_sequence<Index, N>{});
}

namespace detail {

template <class Arch>
inline constexpr bool is_avx512 = std::is_base_of_v<xsimd::avx512f, Arch>;
template <class Arch>
inline constexpr bool is_avx = std::is_base_of_v<xsimd::avx, Arch>;
template <class Arch>
inline constexpr bool is_x86 = is_avx512<Arch> || is_avx<Arch> || std::is_base_of_v<xsimd::sse2, Arch>;

/// destination[0 .. count) = source[0 .. count), count <= 2 * Half: two moves that may overlap instead of a loop.
template <Index Half, class T>
SEQMIX_ALWAYS_INLINE void copy_some(T* destination, const T* source, Index count) {
  if constexpr (Half > 0) {
    if (count >= Half) {
      constexpr std::size_t bytes = std::size_t(Half) * sizeof(T);
      std::memcpy(destination, source, bytes);
      std::memcpy(destination + count - Half, source + count - Half, bytes);
    } else {
      copy_some<Half / 2>(destination, source, count);
    }
  }
}

#if defined(__AVX__)
/// All bits of the first `count` lanes.
template <class T>
SEQMIX_ALWAYS_INLINE __m256i avx_mask(Index count) {
  alignas(64) static constexpr std::int32_t bits[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const void* from = bits + 8 - count * Index(sizeof(T) / sizeof(std::int32_t));
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
#endif

// Moves under a mask, which xsimd 13 has not. (AVX stores through the stack: its store under a mask takes dozens of
// cycles on AMD's processors.)
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> load_masked(const T* source, Index count) {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Arch> && std::is_same_v<T, float>) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1), source);
  }
  if constexpr (is_avx512<Arch> && std::is_same_v<T, double>) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1U << count) - 1), source);
  }
#endif
#if defined(__AVX__)
  if constexpr (is_avx<Arch> && std::is_same_v<T, float>) {
    return _mm256_maskload_ps(source, avx_mask<float>(count));
  }
  if constexpr (is_avx<Arch> && std::is_same_v<T, double>) {
    return _mm256_maskload_pd(source, avx_mask<double>(count));
  }
#endif
  T lane[static_cast<std::size_t>(lanes<T, Arch>)] = {};
  copy_some<lanes<T, Arch> / 2>(lane, source, count);
  return Batch<T, Arch>::load_unaligned(lane);
}

template <class T, class Arch>
SEQMIX_ALWAYS_INLINE void store_masked(T* destination, const xsimd::batch<T, Arch>& value, Index count) {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Arch> && std::is_same_v<T, float>) {
    return _mm512_mask_storeu_ps(destination, static_cast<__mmask16>((1U << count) - 1), value);
  }
  if constexpr (is_avx512<Arch> && std::is_same_v<T, double>) {
    return _mm512_mask_storeu_pd(destination, static_cast<__mmask8>((1U << count) - 1), value);
  }
#endif
  T lane[static_cast<std::size_t>(lanes<T, Arch>)];
  value.store_unaligned(lane);
  copy_some<lanes<T, Arch> / 2>(destination, lane, count);
}

struct Store {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE void operator()(T* destination, const xsimd::batch<T, Arch>& value) const {
    value.store_unaligned(destination);
  }
};

struct StorePartial {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE void operator()(T* destination, const xsimd::batch<T, Arch>& value, Index count) const {
    assert(count >= 0 && count <= (lanes<T, Arch>));
    store_masked(destination, value, count);
  }
};

struct Divide {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE Batch<T, Arch> operator()(const xsimd::batch<T, Arch>& numerator,
                                                 const xsimd::batch<T, Arch>& denominator) const {
    if constexpr (std::is_base_of_v<xsimd::neon64, Arch> && std::is_same_v<T, float>) {
      return Batch<T, Arch>(numerator.data / denominator.data);
    } else {
      return numerator / denominator;
    }
  }
};

/// Let a and b consist of blocks of `distance` lanes. Lane `lane` of their even blocks, those of a first, is this lane of
/// a, or of b from `lanes` on. Where blocks are shorter than 16 bytes this holds for each 16 bytes of a and b apart: so
/// taking the even blocks is one instruction on x86, and so is taking the odd ones, `distance` lanes further on.
template <class T, class Arch>
constexpr Index even_block_source(Index lane, Index distance) {
  constexpr Index W = lanes<T, Arch>;
  const Index segment = distance * Index(sizeof(T)) >= 16 ? W : 16 / Index(sizeof(T)), half = segment / 2;
  const Index begin = lane / segment * segment, place = lane % segment, from = place % half;
  return begin + from / distance * 2 * distance + from % distance + (place < half ? 0 : W);
}

/// The even or the odd blocks of `Distance` lanes of a and b.
template <Index Distance, bool odd, class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> pick_blocks(const xsimd::batch<T, Arch>& a, const xsimd::batch<T, Arch>& b) {
  using Number = xsimd::as_unsigned_integer_t<T>;
  return [&]<Index... I>(std::integer_sequence<Index, I...>) SEQMIX_INLINE_LAMBDA {
    return xsimd::shuffle(
        a, b,
        xsimd::batch_constant<
            Number, Arch, static_cast<Number>(even_block_source<T, Arch>(I, Distance) + (odd ? Distance : 0))...>());
  }(std::make_integer_sequence<Index, lanes<T, Arch>>{});
}

/// After pick_blocks of the rows i and i + D, for D = lanes / 2, lanes / 4 .. 1, this row is in lane `lane` of row 0.
template <class T, class Arch>
constexpr Index row_of_lane(Index lane) {
  Index row = 0;
  for (Index distance = 1; distance < lanes<T, Arch>; distance *= 2) {
    lane = even_block_source<T, Arch>(lane, distance);
    if (lane >= lanes<T, Arch>) {
      row += distance;
      lane -= lanes<T, Arch>;
    }
  }
  return row;
}

/// Calls f(std::integral_constant<Index, N>{}) for N = First, First / 2, First / 4 .. 1.
template <Index First, class F>
SEQMIX_ALWAYS_INLINE void for_halves(F&& f) {
  if constexpr (First > 0) {
    f(std::integral_constant<Index, First>{});
    for_halves<First / 2>(f);
  }
}

// xsimd goes through memory, number by number, where it has no transposition of its own.
struct Transpose {
  template <class T, class Arch, std::size_t N>
  SEQMIX_ALWAYS_INLINE void operator()(xsimd::batch<T, Arch> (&tile)[N]) const {
    static_assert(static_cast<Index>(N) == lanes<T, Arch>, "a tile has as many rows as a batch has lanes");
    if constexpr (!is_avx512<Arch>) {
      xsimd::transpose(tile, tile + N);
    } else {
      constexpr Index W = lanes<T, Arch>;
      Batch<T, Arch> row[N];
      unroll<W>([&](auto lane) SEQMIX_INLINE_LAMBDA { row[row_of_lane<T, Arch>(lane)] = tile[lane]; });
      for_halves<W / 2>([&](auto distance) SEQMIX_INLINE_LAMBDA {
        unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA {
          if constexpr ((i & distance) == 0) {
            const Batch<T, Arch> a = row[i], b = row[i + distance];
            row[i] = pick_blocks<distance, false>(a, b);
            row[i + distance] = pick_blocks<distance, true>(a, b);
          }
        });
      });
      unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { tile[i] = row[i]; });
    }
  }
};

struct ReduceAddRows {
  template <class T, class Arch, std::size_t N>
  SEQMIX_ALWAYS_INLINE Batch<T, Arch> operator()(const xsimd::batch<T, Arch> (&rows)[N]) const {
    static_assert(static_cast<Index>(N) == lanes<T, Arch>, "as many rows as a batch has lanes");
    constexpr Index W = lanes<T, Arch>;
    Batch<T, Arch> sum[N];
    if constexpr (is_x86<Arch>) {
      unroll<W>([&](auto lane) SEQMIX_INLINE_LAMBDA { sum[row_of_lane<T, Arch>(lane)] = rows[lane]; });
      for_halves<W / 2>([&](auto distance) SEQMIX_INLINE_LAMBDA {
        unroll<distance>([&](auto i) SEQMIX_INLINE_LAMBDA {
          const Batch<T, Arch> a = sum[i], b = sum[i + distance];
          sum[i] = pick_blocks<distance, false>(a, b) + pick_blocks<distance, true>(a, b);
        });
      });
    } else {
      unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = rows[i]; });
      xsimd::transpose(sum, sum + N);
      for_halves<W / 2>([&](auto half) SEQMIX_INLINE_LAMBDA {
        unroll<half>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = sum[i] + sum[i + half]; });
      });
    }
    return sum[0];
  }
};

// On x86, max and min return their second operand when either is NaN, so x goes second. Elsewhere the instruction may
// prefer the number (RISC-V) or propagate either NaN (Arm); a comparison with NaN is false on all of them.
template <class Arch>
inline constexpr bool min_max_return_second_on_nan = is_x86<Arch>;

struct NextLanes {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE Batch<T, Arch> operator()(const xsimd::batch<T, Arch>& x,
                                                 const xsimd::batch<T, Arch>& next) const {
    return turn(x, next, std::make_integer_sequence<Index, lanes<T, Arch>>{});
  }

 private:
  template <class T, class Arch, Index... I>
  static SEQMIX_ALWAYS_INLINE Batch<T, Arch> turn(const xsimd::batch<T, Arch>& x, const xsimd::batch<T, Arch>& next,
                                                  std::integer_sequence<Index, I...>) {
    using Lane = xsimd::as_unsigned_integer_t<T>;
    constexpr Index count = sizeof...(I);
    constexpr xsimd::batch_constant<Lane, Arch, Lane((I + 1) % count)...> order{};
    constexpr xsimd::batch_bool_constant<T, Arch, (I + 1 < count)...> own{};
    return xsimd::select(own, xsimd::swizzle(x, order), xsimd::swizzle(next, order));
  }
};

struct MaxPropagating {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE Batch<T, Arch> operator()(const xsimd::batch<T, Arch>& x,
                                                 const xsimd::batch<T, Arch>& bound) const {
    if constexpr (min_max_return_second_on_nan<Arch>) {
      return xsimd::max(bound, x);
    } else {
      return xsimd::select(x < bound, bound, x);
    }
  }
};

struct MinPropagating {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE Batch<T, Arch> operator()(const xsimd::batch<T, Arch>& x,
                                                 const xsimd::batch<T, Arch>& bound) const {
    if constexpr (min_max_return_second_on_nan<Arch>) {
      return xsimd::min(bound, x);
    } else {
      return xsimd::select(x > bound, bound, x);
    }
  }
};

}  // namespace detail

/// source[0 .. count) and zeros in the other lanes; never reads beyond `count`. 0 <= count <= lanes.
template <class Arch = xsimd::default_arch, class T>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> load_partial(const T* source, Index count) {
  assert(count >= 0 && count <= (lanes<T, Arch>));
  return detail::load_masked<T, Arch>(source, count);
}

/// store(T* destination, Batch<T> value): all lanes, any alignment.
inline constexpr detail::Store store{};

/// store_partial(T* destination, Batch<T> value, Index count): the first `count` lanes; never writes beyond them.
inline constexpr detail::StorePartial store_partial{};

namespace detail {

/// source[0 .. lanes) as far as `count` goes, zeros beyond. Where all lanes are known to be there at compile time, a plain load.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> load_some(const T* source, Index count) {
  return count >= lanes<T> ? load(source) : load_partial(source, count);
}

/// The same for a store; never writes beyond `count`.
template <class T>
SEQMIX_ALWAYS_INLINE void store_some(T* destination, const Batch<T>& value, Index count) {
  if (count >= lanes<T>) {
    store(destination, value);
  } else {
    store_partial(destination, value, count);
  }
}

}  // namespace detail

/// divide(a, b) = a / b, correctly rounded. (On 64-bit Arm xsimd's operator multiplies by an estimate of 1 / b, 2 ulp off,
/// although the processor can divide.)
inline constexpr detail::Divide divide{};

/// transpose(Batch<T> (&tile)[lanes]): lane j of row i changes places with lane i of row j.
inline constexpr detail::Transpose transpose{};

/// reduce_add_rows(Batch<T> (&rows)[lanes]): lane i is the sum of the lanes of row i, in a fixed order.
inline constexpr detail::ReduceAddRows reduce_add_rows{};

/// next_lanes(Batch<T> x, Batch<T> next): lanes 1, 2 ... of x, then lane 0 of next.
inline constexpr detail::NextLanes next_lanes{};

/// max_propagating(x, bound) = x < bound ? bound : x. A NaN in x stays (payload included), on every instruction set;
/// `bound` should be a number.
inline constexpr detail::MaxPropagating max_propagating{};

/// min_propagating(x, bound) = x > bound ? bound : x. A NaN in x stays (payload included), on every instruction set;
/// `bound` should be a number.
inline constexpr detail::MinPropagating min_propagating{};

namespace detail {

/// In every segment of `Segment` lanes the sums of neighbouring blocks of `Block` lanes, those of x and then those of
/// y.
template <Index Block, Index Segment, class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> add_neighbours(const xsimd::batch<T, Arch>& x, const xsimd::batch<T, Arch>& y) {
  constexpr auto source = [](Index lane, Index odd) {
    const Index segment = lane / Segment * Segment, half = lane % Segment % (Segment / 2);
    const Index of_y = lane % Segment >= Segment / 2 ? lanes<T, Arch> : 0;
    return of_y + segment + (half / Block * 2 + odd) * Block + half % Block;
  };
  return [&]<Index... I>(std::integer_sequence<Index, I...>) SEQMIX_INLINE_LAMBDA {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    return xsimd::shuffle(x, y, xsimd::batch_constant<Bits, Arch, Bits(source(I, 0))...>()) +
           xsimd::shuffle(x, y, xsimd::batch_constant<Bits, Arch, Bits(source(I, 1))...>());
  }(std::make_integer_sequence<Index, lanes<T, Arch>>());
}

/// The sums of the lanes of `lanes` batches, from N that each hold `lanes / N` of them in as many parts as N.
template <class T, class Arch, std::size_t N>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> add_lanes(const xsimd::batch<T, Arch> (&x)[N]) {
  if constexpr (N == 1) {
    return x[0];
  } else {
    // First within the 128 bits that instructions shuffle at no loss, then across them.
    constexpr Index near = Index(16 / sizeof(T)), width = lanes<T, Arch>;
    constexpr bool across = width / Index(N) >= near;
    constexpr Index block = across ? near : 1, segment = across ? width : near;
    Batch<T, Arch> sums[N / 2];
    unroll<Index(N / 2)>(
        [&](auto i) SEQMIX_INLINE_LAMBDA { sums[i] = add_neighbours<block, segment>(x[2 * i], x[2 * i + 1]); });
    return add_lanes(sums);
  }
}

}  // namespace detail

/// sums[i] = the sum of the lanes of x[i] for every i; up to whole vectors of sums are written. Adds the lanes of many
/// batches at once, with a third of the instructions that as many calls of reduce_add take.
template <class T, class Arch, std::size_t N>
SEQMIX_ALWAYS_INLINE void reduce_add_each(const xsimd::batch<T, Arch> (&x)[N], T* sums) {
  constexpr Index width = lanes<T, Arch>, count = static_cast<Index>(N), whole = count / width * width;
  // So few that are left over are quicker one by one.
  constexpr bool singly = 2 * (count - whole) < width;
  unroll<(singly ? whole : count + width - 1) / width>([&](auto group) SEQMIX_INLINE_LAMBDA {
    Batch<T, Arch> some[width];
    unroll<width>([&](auto i) SEQMIX_INLINE_LAMBDA {
      if constexpr (group * width + i < count) {
        some[i] = x[group * width + i];
      } else {
        some[i] = Batch<T, Arch>(T(0));
      }
    });
    detail::add_lanes(some).store_unaligned(sums + group * width);
  });
  if constexpr (singly) {
    unroll<count - whole>([&](auto i) SEQMIX_INLINE_LAMBDA { sums[whole + i] = xsimd::reduce_add(x[whole + i]); });
  }
}

/// 0, 1, 2 ... lanes - 1.
template <class T, class Arch = xsimd::default_arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> lane_index() {
  return []<Index... I>(std::integer_sequence<Index, I...>) SEQMIX_INLINE_LAMBDA {
    return Batch<T, Arch>(static_cast<T>(I)...);
  }(std::make_integer_sequence<Index, lanes<T, Arch>>{});
}

/// Asks for the cache line at `address` before it is read. Any address is legal; without effect where unsupported.
SEQMIX_ALWAYS_INLINE void prefetch_read([[maybe_unused]] const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 3);
#endif
}

/// Asks for the cache line at `address` a while before it is read or written: into the second-level cache, so that neither
/// the few buffers of the first level wait for memory nor its few ways fill with what is not needed yet. Any address is
/// legal; without effect where unsupported.
SEQMIX_ALWAYS_INLINE void prefetch_early([[maybe_unused]] const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 2);
#endif
}

/// Asks for the cache line at `address` soon before it is read or written: into the first-level cache. Any address is legal;
/// without effect where unsupported.
SEQMIX_ALWAYS_INLINE void prefetch_soon([[maybe_unused]] const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 3);
#endif
}

/// Makes the compiler hold the value in a register here, and forget what it knows about it. At no cost: what was loaded
/// is not loaded again for a second use, and loops around it are neither folded nor reordered.
template <class T>
SEQMIX_ALWAYS_INLINE void keep_in_register([[maybe_unused]] Batch<T>& value) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(value.data));
#elif defined(__SSE2__)
  asm volatile("" : "+x"(value.data));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value.data));
#endif
}

/// A sum of two numbers without loss: a + b = sum + error, where `sum` is the rounded one.
template <class T>
struct ExactSum {
  Batch<T> sum, error;
};

/// a + b without loss, whichever is the larger (Knuth's two-sum). Where the sum is not finite, the error is 0. A compiler
/// would contract products into these additions, and the error would be that of another sum: it is kept from it.
template <class T>
SEQMIX_ALWAYS_INLINE ExactSum<T> two_sum(Batch<T> a, Batch<T> b) {
  keep_in_register<T>(a);
  keep_in_register<T>(b);
  Batch<T> sum = a + b;
  keep_in_register<T>(sum);
  Batch<T> b_part = sum - a;
  keep_in_register<T>(b_part);
  Batch<T> a_part = sum - b_part;
  keep_in_register<T>(a_part);
  const Batch<T> error = (a - a_part) + (b - b_part);
  return {sum, select(xsimd::isnan(error), broadcast(T(0)), error)};
}

/// Asks for the cache line at `address` before it is written. Any address is legal; without effect where unsupported.
SEQMIX_ALWAYS_INLINE void prefetch_write([[maybe_unused]] void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 1, 3);
#endif
}

}  // namespace seqmix::inline SEQMIX_ARCH
