// The batch vocabulary: moves between memory and registers, NaN behaviour of the bounds, unrolling.
#include <seqmix/simd/batch.hpp>

#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/simd/streaming.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using seqmix::Batch;
using seqmix::Index;
using seqmix::lanes;

// Exactly as long as needed and on the heap, so that a sanitizer sees any access beyond.
template <class T>
std::vector<T> counting(Index count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = static_cast<T>(i + 1);
  return values;
}

template <class T>
std::vector<T> to_vector(const Batch<T>& batch) {
  std::vector<T> values(static_cast<std::size_t>(lanes<T>));
  seqmix::store(values.data(), batch);
  return values;
}

// Signalling and quiet, both signs, low and high payload bits.
template <class T>
std::vector<T> nan_values() {
  if constexpr (sizeof(T) == 4) {
    return {std::bit_cast<T>(0x7fc00000u), std::bit_cast<T>(0xffc00000u), std::bit_cast<T>(0x7fc00001u),
            std::bit_cast<T>(0x7fffffffu), std::bit_cast<T>(0xffffffffu), std::bit_cast<T>(0x7fd55555u)};
  } else {
    return {std::bit_cast<T>(0x7ff8000000000000u), std::bit_cast<T>(0xfff8000000000000u),
            std::bit_cast<T>(0x7ff8000000000001u), std::bit_cast<T>(0x7fffffffffffffffu),
            std::bit_cast<T>(0xffffffffffffffffu), std::bit_cast<T>(0x7ff8000055555555u)};
  }
}

template <class T>
bool same_bits(T a, T b) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  return std::bit_cast<Bits>(a) == std::bit_cast<Bits>(b);
}

}  // namespace

TEMPLATE_TEST_CASE("partial loads and stores touch exactly count elements", "[simd]", float, double) {
  using T = TestType;
  for (Index count = 0; count <= lanes<T>; ++count) {
    const auto source = counting<T>(count);
    const auto loaded = to_vector(seqmix::load_partial(source.data(), count));
    for (Index i = 0; i < lanes<T>; ++i) {
      REQUIRE(loaded[static_cast<std::size_t>(i)] == (i < count ? static_cast<T>(i + 1) : T(0)));
    }

    const auto full = counting<T>(lanes<T>);
    std::vector<T> exact(static_cast<std::size_t>(count), T(-1));
    seqmix::store_partial(exact.data(), seqmix::load(full.data()), count);
    REQUIRE(exact == source);
    std::vector<T> longer(static_cast<std::size_t>(lanes<T>), T(-1));
    seqmix::store_partial(longer.data(), seqmix::load(full.data()), count);
    for (Index i = 0; i < lanes<T>; ++i) {
      REQUIRE(longer[static_cast<std::size_t>(i)] == (i < count ? static_cast<T>(i + 1) : T(-1)));
    }
  }
}

TEMPLATE_TEST_CASE("the lanes of many batches are summed at once", "[simd]", float, double) {
  using T = TestType;
  const auto sums_of = [](auto number) {
    constexpr Index count = number;
    Batch<T> batches[static_cast<std::size_t>(count)];
    std::vector<T> expected(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) {
      auto values = counting<T>(lanes<T>);
      for (T& value : values) value = value * value + T(i);
      for (const T value : values) expected[static_cast<std::size_t>(i)] += value;
      batches[i] = seqmix::load(values.data());
    }
    std::vector<T> sums(static_cast<std::size_t>((count + lanes<T> - 1) / lanes<T> * lanes<T>));
    seqmix::reduce_add_each(batches, sums.data());
    sums.resize(expected.size());
    REQUIRE(sums == expected);
  };
  seqmix::unroll<2 * lanes<T> + 1>([&](auto i) { sums_of(std::integral_constant<Index, i + 1>()); });
}

TEMPLATE_TEST_CASE("partial loads and stores keep the bits of NaN", "[simd]", float, double) {
  using T = TestType;
  for (Index count = 1; count <= lanes<T>; ++count) {
    for (const T nan : nan_values<T>()) {
      const std::vector<T> source(static_cast<std::size_t>(count), nan);
      std::vector<T> target(static_cast<std::size_t>(count), T(0));
      seqmix::store_partial(target.data(), seqmix::load_partial(source.data(), count), count);
      for (const T value : target) REQUIRE(same_bits(value, nan));
    }
  }
}

#if defined(__unix__)
// What moves under a mask a sanitizer doesn't see; here a page that may not be touched follows.
TEMPLATE_TEST_CASE("partial loads and stores stay within their page", "[simd]", float, double) {
  using T = TestType;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const memory = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  REQUIRE(mprotect(static_cast<char*>(memory) + page, page, PROT_NONE) == 0);
  T* const end = static_cast<T*>(memory) + page / sizeof(T);
  for (Index count = 0; count <= lanes<T>; ++count) {
    for (Index i = 0; i < count; ++i) end[i - count] = static_cast<T>(i + 1);
    const auto loaded = to_vector(seqmix::load_partial(end - count, count));
    for (Index i = 0; i < count; ++i) REQUIRE(loaded[static_cast<std::size_t>(i)] == static_cast<T>(i + 1));
    seqmix::store_partial(end - count, seqmix::broadcast(T(7)), count);
    for (Index i = 0; i < count; ++i) REQUIRE(end[i - count] == T(7));
  }
  munmap(memory, 2 * page);
}
#endif

TEMPLATE_TEST_CASE("load and store accept any alignment", "[simd]", float, double) {
  using T = TestType;
  const auto source = counting<T>(2 * lanes<T>);
  for (Index shift = 0; shift < lanes<T>; ++shift) {
    std::vector<T> target(static_cast<std::size_t>(2 * lanes<T>), T(0));
    seqmix::store(target.data() + shift, seqmix::load(source.data() + shift));
    for (Index i = 0; i < 2 * lanes<T>; ++i) {
      const bool inside = i >= shift && i < shift + lanes<T>;
      REQUIRE(target[static_cast<std::size_t>(i)] == (inside ? static_cast<T>(i + 1) : T(0)));
    }
  }
}

TEMPLATE_TEST_CASE("transpose exchanges rows and lanes", "[simd]", float, double) {
  using T = TestType;
  const auto values = counting<T>(lanes<T> * lanes<T>);
  Batch<T> tile[static_cast<std::size_t>(lanes<T>)];
  for (Index i = 0; i < lanes<T>; ++i) tile[i] = seqmix::load(values.data() + i * lanes<T>);
  seqmix::transpose(tile);
  for (Index i = 0; i < lanes<T>; ++i) {
    const auto row = to_vector(tile[i]);
    for (Index j = 0; j < lanes<T>; ++j) {
      REQUIRE(row[static_cast<std::size_t>(j)] == values[static_cast<std::size_t>(j * lanes<T> + i)]);
    }
  }
}

TEMPLATE_TEST_CASE("reduce_add_rows adds up every row by itself", "[simd]", float, double) {
  using T = TestType;
  const auto values = counting<T>(lanes<T> * lanes<T>);
  Batch<T> rows[static_cast<std::size_t>(lanes<T>)];
  const auto load_rows = [&] {
    for (Index i = 0; i < lanes<T>; ++i) rows[i] = seqmix::load(values.data() + i * lanes<T>);
  };
  load_rows();
  const auto sums = to_vector(seqmix::reduce_add_rows(rows));
  for (Index i = 0; i < lanes<T>; ++i) {
    T sum = 0;
    for (Index j = 0; j < lanes<T>; ++j) sum += values[static_cast<std::size_t>(i * lanes<T> + j)];
    REQUIRE(sums[static_cast<std::size_t>(i)] == sum);
  }
  for (Index bad = 0; bad < lanes<T>; ++bad) {
    load_rows();
    rows[bad] = seqmix::broadcast(std::numeric_limits<T>::infinity());
    const auto spoilt = to_vector(seqmix::reduce_add_rows(rows));
    for (Index i = 0; i < lanes<T>; ++i) {
      REQUIRE((spoilt[static_cast<std::size_t>(i)] == sums[static_cast<std::size_t>(i)]) == (i != bad));
    }
  }
}

TEMPLATE_TEST_CASE("next_lanes continues one batch by another", "[simd]", float, double) {
  using T = TestType;
  const auto numbers = counting<T>(2 * lanes<T>);
  const auto turned =
      to_vector(seqmix::next_lanes(seqmix::load(numbers.data()), seqmix::load(numbers.data() + lanes<T>)));
  for (Index i = 0; i < lanes<T>; ++i) REQUIRE(turned[std::size_t(i)] == T(i + 2));
}

TEMPLATE_TEST_CASE("bounds keep NaN and bound everything else", "[simd]", float, double) {
  using T = TestType;
  const T infinity = std::numeric_limits<T>::infinity();
  const auto bound = seqmix::broadcast(T(-2));
  for (const T nan : nan_values<T>()) {
    REQUIRE(same_bits(seqmix::max_propagating(seqmix::broadcast(nan), bound).get(0), nan));
    REQUIRE(same_bits(seqmix::min_propagating(seqmix::broadcast(nan), bound).get(0), nan));
  }
  for (const T x : {-infinity, T(-3), T(-2), T(-1), T(0), T(5), infinity}) {
    REQUIRE(seqmix::max_propagating(seqmix::broadcast(x), bound).get(0) == (x < T(-2) ? T(-2) : x));
    REQUIRE(seqmix::min_propagating(seqmix::broadcast(x), bound).get(0) == (x > T(-2) ? T(-2) : x));
  }
}

TEMPLATE_TEST_CASE("lane_index, reductions and select", "[simd]", float, double) {
  using T = TestType;
  const auto index = seqmix::lane_index<T>();
  const auto count = static_cast<T>(lanes<T>);
  for (Index i = 0; i < lanes<T>; ++i) REQUIRE(index.get(static_cast<std::size_t>(i)) == static_cast<T>(i));
  REQUIRE(seqmix::reduce_add(index) == count * (count - 1) / 2);
  REQUIRE(seqmix::reduce_max(index) == count - 1);
  const auto chosen = seqmix::select(index < seqmix::broadcast(T(1)), seqmix::broadcast(T(7)), index);
  REQUIRE(chosen.get(0) == T(7));
  REQUIRE(chosen.get(1) == T(1));
  REQUIRE(seqmix::fma(index, seqmix::broadcast(T(3)), seqmix::broadcast(T(1))).get(1) == T(4));
}

TEMPLATE_TEST_CASE("divide rounds correctly", "[simd]", float, double) {
  using T = TestType;
  for (int i = 1; i < 1000; ++i) {
    const T a = static_cast<T>(i) * T(0.37), b = static_cast<T>(1000 - i) * T(1.13);
    REQUIRE(seqmix::divide(seqmix::broadcast(a), seqmix::broadcast(b)).get(0) == a / b);
  }
}

TEST_CASE("unroll visits every index in order, as constants", "[simd]") {
  std::vector<Index> seen;
  seqmix::unroll<5>([&](auto i) SEQMIX_INLINE_LAMBDA {
    static_assert(decltype(i)::value >= 0 && decltype(i)::value < 5);
    seen.push_back(i);
  });
  REQUIRE(seen == std::vector<Index>{0, 1, 2, 3, 4});
  seqmix::unroll<0>([&](auto) SEQMIX_INLINE_LAMBDA { seen.clear(); });
  REQUIRE(seen.size() == 5);
  int calls = 0;
  const auto add = [&](int by) SEQMIX_INLINE_LAMBDA -> int { return calls += by; };
  REQUIRE(add(2) == 2);
}

TEMPLATE_TEST_CASE("streamed stores write one register", "[simd]", float, double) {
  using T = TestType;
  constexpr seqmix::Index width = seqmix::lanes<T>;
  seqmix::Buffer<T> memory(static_cast<std::size_t>(3 * width), T(5));
  seqmix::store_streaming(memory.data() + width, seqmix::lane_index<T>());
  seqmix::finish_streaming();
  for (seqmix::Index i = 0; i < 3 * width; ++i) {
    CHECK(memory[static_cast<std::size_t>(i)] == (i / width == 1 ? T(i - width) : T(5)));
  }
}

TEST_CASE("prefetch accepts any address", "[simd]") {
  int value = 3;
  seqmix::prefetch_read(&value);
  seqmix::prefetch_read(nullptr);
  seqmix::prefetch_write(&value);
  REQUIRE(value == 3);
}

namespace {

// Functions of their own, so that the products have no other use and may be contracted.
template <class T>
[[gnu::noinline]] seqmix::ExactSum<T> add_product_first(const T* x, const T* y, const T* z) {
  return seqmix::two_sum<T>(seqmix::load(x) * seqmix::load(y), seqmix::load(z));
}
template <class T>
[[gnu::noinline]] seqmix::ExactSum<T> add_product_last(const T* x, const T* y, const T* z) {
  return seqmix::two_sum<T>(seqmix::load(z), seqmix::load(x) * seqmix::load(y));
}

}  // namespace

TEMPLATE_TEST_CASE("a sum of two numbers and its error are exact, whatever the compiler contracts", "[simd]", float,
                   double) {
  using T = TestType;
  // Exact here: all numbers are within a factor of 512 of each other.
  using Wider = std::conditional_t<sizeof(T) == 4, double, long double>;
  constexpr bool exact = std::numeric_limits<Wider>::digits >= std::numeric_limits<T>::digits + 10;
  seqmix::Rng rng(5);
  const auto numbers = [&](double size) {
    std::vector<T> result(static_cast<std::size_t>(lanes<T>));
    for (T& x : result) x = T(size * rng.uniform(0.5, 1) * (rng.bits() % 2 == 0 ? 1 : -1));
    return result;
  };
  for (int trial = 0; trial < 1000; ++trial) {
    const auto x = numbers(1), y = numbers(1), z = numbers(trial % 2 == 0 ? 64 : 0x1p-6);
    for (const auto& [sum, error] :
         {add_product_first(x.data(), y.data(), z.data()), add_product_last(x.data(), y.data(), z.data())}) {
      const auto sums = to_vector<T>(sum), errors = to_vector<T>(error);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const volatile T product = x[i] * y[i];  // rounded, as all that is stored
        const volatile T rounded = product + z[i];
        REQUIRE(sums[i] == rounded);
        if constexpr (exact) {
          REQUIRE(Wider(errors[i]) == Wider(product) + Wider(z[i]) - Wider(rounded));
        }
      }
    }
  }
  const T infinity = std::numeric_limits<T>::infinity(), most = std::numeric_limits<T>::max();
  for (const auto& [a, b] : {std::pair(infinity, T(1)), std::pair(T(1), -infinity), std::pair(most, most)}) {
    const auto [sum, error] = seqmix::two_sum<T>(seqmix::broadcast(a), seqmix::broadcast(b));
    REQUIRE(to_vector<T>(sum)[0] == a + b);
    REQUIRE(to_vector<T>(error)[0] == T(0));
  }
}
