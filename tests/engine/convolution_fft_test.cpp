// Transforms and long convolutions against their definitions, in long double for double.
//
// Bounds are 4 eps log2(N) of the root mean square of what is expected. Each of log2(N) / 2 passes of radix 4 rounds
// every point up to four times, by eps / 2 of what is as large as the others on average: eps log2(N) where all errors
// agree. Between an input and an output there are two transforms, and one before a filter.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>
#include <limits>
#include <numbers>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution_fft.hpp>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/allocations.hpp"
#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;

/// Root mean square of the differences from what was expected, in units of what is allowed.
template <class T>
class Error {
 public:
  void add(T given, Wide<T> expected) {
    const Wide<T> difference = given - expected;
    differences_ += double(difference * difference);
    squares_ += double(expected * expected);
  }
  double of_allowed(Index transform) const {
    const double allowed = 4 * double(std::numeric_limits<T>::epsilon()) * std::log2(double(transform));
    return std::sqrt(differences_ / squares_) / allowed;
  }

 private:
  double differences_ = 0, squares_ = 0;
};

template <class T>
Matrix<T> random_matrix(Index rows, Index columns, Rng& rng) {
  return Matrix<T>::NullaryExpr(rows, columns, [&] { return T(rng.normal()); });
}

/// Rows to compare: all of short sequences.
std::vector<Index> rows_of(Index length) {
  std::vector<Index> rows;
  for (Index t = 0; t<length; t += length> 300 ? 1 + length / 37 : 1) rows.push_back(t);
  if (length > 300) rows.push_back(length - 1);
  return rows;
}

TEMPLATE_TEST_CASE("transforms are what they say", "[convolution]", float, double) {
  using T = TestType;
  using Complex = std::complex<Wide<T>>;
  Rng rng(test_seed);
  for (const Index rows : {1, 16, 17, 40, 64, 100, 256, 700, 1024, 4096, 65536}) {
    const RightAngleTransform<T> transform(rows);
    const Index N = transform.length(), W = transform.width;
    INFO(rows << " rows, transform of " << N);
    REQUIRE(N >= rows);
    std::vector<Complex> roots;  // e^{2 pi i n / 4N}
    for (Index n = 0; n < 4 * N; ++n) {
      roots.push_back(std::polar(Wide<T>(1), 2 * std::numbers::pi_v<Wide<T>> * Wide<T>(n) / Wide<T>(4 * N)));
    }
    const Matrix<T> x = random_matrix<T>(rows, W, rng);
    Buffer<T> spectrum(std::size_t(transform.spectrum_size()), std::numeric_limits<T>::quiet_NaN());
    transform.forward({x.data(), rows, W}, spectrum.data());
    Error<T> error;
    std::vector<bool> seen(std::size_t(N), false);
    for (Index place = 0; place < N; ++place) {
      const Index k = transform.frequency(place);
      REQUIRE((k >= 0 && k < N && !seen[std::size_t(k)]));
      seen[std::size_t(k)] = true;
      if (N > 256 && place % (N / 64 + 1) != 0) continue;
      const Index lane = place % W;
      Complex sum = 0;
      for (Index n = 0; n < rows; ++n)
        sum += Wide<T>(x(n, lane)) * roots[std::size_t((n + 4 * N * N - 4 * k * n) % (4 * N))];
      error.add(spectrum[std::size_t(2 * place * W + lane)], sum.real());
      error.add(spectrum[std::size_t((2 * place + 1) * W + lane)], sum.imag());
    }
    CHECK(error.of_allowed(N) <= 1);
  }
}

TEMPLATE_TEST_CASE("convolutions in parts, of several registers, are those at once", "[convolution]", float, double) {
  using T = TestType;
  constexpr Index W = lanes<T>, registers = 3, wide = 4 * W;
  Rng rng(test_seed);
  for (const Index length : {16, 32, 64, 128, 512, 1024}) {
    const RightAngleTransform<T> transform(length);
    const RightAngleTransform<T, wide> several(length, registers * W);
    const Matrix<T> filter = random_matrix<T>(length, wide, rng), x = random_matrix<T>(length, wide, rng);
    const Matrix<T> y = random_matrix<T>(length, wide, rng);
    Matrix<T> expected = y;
    Buffer<T> spectrum(std::size_t(transform.spectrum_size()), 0), points(spectrum);
    Buffer<T> spectra(std::size_t(several.spectrum_size()), 0);
    for (Index v = 0; v < registers; ++v) {
      transform.forward({filter.data() + v * W, length, wide}, spectrum.data());
      transform.combine(spectrum.data(), nullptr);
      transform.multiply({x.data() + v * W, length, wide}, spectrum.data(), points.data());
      transform.template write<true>(points.data(), {expected.data() + v * W, length, wide});
    }
    several.forward({filter.data(), length, wide}, spectra.data());
    several.combine(spectra.data(), nullptr);
    const auto product = [&](auto& a, Index place, Index h) {
      for (Index q = 0; q < 4; ++q) {
        const T* const by = spectra.data() + (place + q) * 2 * wide + h;
        a[q] = a[q].times({load(by), load(by + wide)});
      }
    };
    for (const Index most : {Index(1), Index(2), Index(7), length, 100 * length}) {
      for (const Index cost : {0, 1, 5}) {
        INFO(length << " tokens, up to " << most << " parts at once, product " << cost);
        const Index count = several.part_count(cost);
        Matrix<T> given = y;
        Buffer<T> work(std::size_t(several.spectrum_size()), std::numeric_limits<T>::quiet_NaN());
        for (Index begin = 0, end = 0; begin < count; begin = end) {
          end = std::min(count, begin + rng.integer(1, most));
          several.convolve_part({x.data(), length, wide}, work.data(), count, product, {given.data(), length, wide},
                                begin, end);
        }
        Error<T> error;
        for (Index i = 0; i < given.size(); ++i) error.add(given.data()[i], expected.data()[i]);
        CHECK(error.of_allowed(length) <= 1);
        CHECK(given.rightCols(W) == y.rightCols(W));
      }
    }
  }
}

/// A convolution of x, rows of which have numbers that don't belong to them between them, with `tap(row, lag)`.
template <class T>
struct Convolved {
  Convolved(const LongConvolution<T>& convolution, Index inputs, Index length, Index padding, Rng& rng)
      : channels(convolution.channels()),
        outputs(convolution.outputs()),
        x(random_matrix<T>(inputs, channels + padding, rng)),
        y(Matrix<T>::Constant(length, outputs + padding, std::numeric_limits<T>::quiet_NaN())) {
    x.leftCols(padding).setConstant(std::numeric_limits<T>::quiet_NaN());
  }
  void run(const LongConvolution<T>& convolution, Workspace& workspace) {
    workspace.poison();
    const Index padding = x.cols() - channels;
    convolution.run(ConstSequence<T>(x).columns(padding, channels), Sequence<T>(y).columns(0, outputs), workspace);
    CHECK(y.rightCols(padding).array().isNaN().all());
  }
  template <class Tap>
  double error(const Tap& tap) const {
    Error<T> error;
    for (const Index t : rows_of(y.rows())) {
      for (Index row = 0; row < outputs; ++row) {
        const Index h = row % channels + x.cols() - channels;
        Wide<T> sum = 0;
        for (Index s = 0; s < x.rows(); ++s) sum += Wide<T>(tap(row, t - s)) * Wide<T>(x(s, h));
        error.add(y(t, row), sum);
      }
    }
    return error.of_allowed(RightAngleTransform<T>::padded_length(std::max(x.rows(), y.rows())));
  }

  Index channels, outputs;
  Matrix<T> x, y;
};

TEMPLATE_TEST_CASE("long convolutions of any length", "[convolution]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  const auto check = [&](Index length, Index channels, Index outputs, Index taps) {
    INFO(length << " tokens, " << channels << " channels, " << outputs << " outputs, " << taps << " taps");
    const Matrix<T> filter = random_matrix<T>(outputs * channels, taps, rng);
    const Matrix<T> later = random_matrix<T>(outputs * channels, taps, rng);
    const auto causal = [&](Index row, Index lag) { return lag >= 0 && lag < taps ? filter(row, lag) : T(0); };
    const auto both = [&](Index row, Index lag) {
      return lag >= 0 ? causal(row, lag) : lag >= -taps ? later(row, -1 - lag) : T(0);
    };
    const auto of_past = LongConvolution<T>::causal("test", channels, length, filter);
    const auto of_both = LongConvolution<T>::bidirectional("test", channels, length, filter, later);
    CHECK((of_past.channels() == channels && of_past.outputs() == outputs * channels && of_past.length() == length));
    Convolved<T> past(of_past, length, length, length % 4, rng), all(of_both, length, length, 0, rng);
    past.run(of_past, workspace), all.run(of_both, workspace);
    CHECK(past.error(causal) <= 1);
    CHECK(all.error(both) <= 1);
    // Shorter inputs, and longer or shorter outputs.
    Convolved<T> cut(of_both, length - length / 3, length, 1, rng), start(of_past, length, length / 2 + 1, 2, rng);
    cut.run(of_both, workspace), start.run(of_past, workspace);
    CHECK(cut.error(both) <= 1);
    CHECK(start.error(causal) <= 1);
  };
  for (const Index length : {1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,  31,   32,   33,
                             63, 64, 65, 99, 127, 128, 129, 255, 257, 500, 512, 1023, 1025, 2048}) {
    check(length, 3, 1, length);
  }
  for (const Index channels : {1, 3, 8, 17, 64}) check(100, channels, 1, 100), check(67, channels, 2, 67);
  for (const Index taps : {1, 2, 20, 64, 200}) check(65, 5, 1, taps);
  for (const Index length : {4095, 4097, 10000}) check(length, 2, 1, length);
  for (const Index length : {65535, 65536}) check(length, 1, 1, length);
  for (const Index more : {0, 5}) check(3000, 16 * lanes<T> + more, 2, 100);
  check(65537, 1, 1, 1000);
}

TEMPLATE_TEST_CASE("circular convolutions are products of discrete Fourier transforms", "[convolution]", float,
                   double) {
  using T = TestType;
  using Complex = std::complex<Wide<T>>;
  Rng rng(test_seed);
  Workspace workspace;
  for (const Index period : {1, 2, 3, 8, 15, 16, 17, 100, 128, 200}) {
    INFO("period " << period);
    const Index channels = 2;
    const Matrix<T> filter = random_matrix<T>(channels, period, rng);
    const auto circular = LongConvolution<T>::circular("test", channels, filter);
    Convolved<T> convolved(circular, period, period, 0, rng);
    convolved.run(circular, workspace);
    const auto transform = [&](const std::vector<Complex>& x, int sign) {
      std::vector<Complex> result;
      for (Index k = 0; k < period; ++k) {
        Complex sum = 0;
        for (Index n = 0; n < period; ++n) {
          const auto angle = 2 * std::numbers::pi_v<Wide<T>> * Wide<T>(k * n % period) / Wide<T>(period);
          sum += x[std::size_t(n)] * std::polar(Wide<T>(1), Wide<T>(sign) * angle);
        }
        result.push_back(sum);
      }
      return result;
    };
    Error<T> error;
    for (Index h = 0; h < channels; ++h) {
      std::vector<Complex> x, taps;
      for (Index t = 0; t < period; ++t) x.emplace_back(convolved.x(t, h)), taps.emplace_back(filter(h, t));
      x = transform(x, -1), taps = transform(taps, -1);
      for (Index k = 0; k < period; ++k) x[std::size_t(k)] *= taps[std::size_t(k)] / Wide<T>(period);
      x = transform(x, 1);
      for (Index t = 0; t < period; ++t) error.add(convolved.y(t, h), x[std::size_t(t)].real());
    }
    CHECK(error.of_allowed(RightAngleTransform<T>::padded_length(period)) <= 1);
    // Half a period of inputs.
    Convolved<T> half(circular, (period + 1) / 2, period, 0, rng);
    half.run(circular, workspace);
    CHECK(half.error([&](Index row, Index lag) { return filter(row, (lag + period) % period); }) <= 1);
  }
}

TEST_CASE("long convolutions give the same bits on any executor", "[convolution]") {
  Rng rng(test_seed);
  // Many channels are gathered, as many registers at once as there are threads for.
  for (const auto& [channels, length] :
       {std::pair(Index(37), Index(300)), std::pair(20 * lanes<float> + 3, Index(700))}) {
    const Matrix<float> filter = random_matrix<float>(2 * channels, length, rng);
    const auto convolution = LongConvolution<float>::causal("test", channels, length, filter);
    const Convolved<float> inputs(convolution, length, length, 0, rng);
    Matrix<float> expected;
    for (const auto& [name, executor] : all_executors()) {
      INFO(name);
      Workspace workspace(*executor);
      Convolved<float> convolved = inputs;
      convolved.run(convolution, workspace);
      if (expected.size() == 0) expected = convolved.y;
      CHECK((convolved.y == expected));
    }
  }
}

TEST_CASE("long convolutions allocate nothing once warm", "[convolution]") {
  Rng rng(test_seed);
  Workspace workspace;
  const Matrix<float> filter = random_matrix<float>(19, 1000, rng);
  const auto convolution = LongConvolution<float>::causal("test", 19, 1000, filter);
  const Matrix<float> x = random_matrix<float>(1000, 19, rng);
  Matrix<float> y(1000, 19);
  convolution.run(x, y, workspace);
  const std::size_t before = allocation_count();
  for (const Index length : {1000, 999, 17, 1, 0}) {
    convolution.run(ConstSequence<float>(x).rows(0, length), Sequence<float>(y).rows(0, length), workspace);
  }
  CHECK(allocation_count() == before);
}

TEST_CASE("long convolutions refuse filters that do not fit", "[convolution]") {
  using Convolution = LongConvolution<float>;
  const Matrix<float> filter = Matrix<float>::Zero(6, 4), other = Matrix<float>::Zero(5, 4), none(6, 0);
  CHECK_NOTHROW(Convolution::bidirectional("test", 3, 9, filter, none));
  CHECK_THROWS_AS(Convolution::causal("test", 4, 9, filter), std::invalid_argument);
  CHECK_THROWS_AS(Convolution::causal("test", 0, 9, filter), std::invalid_argument);
  CHECK_THROWS_AS(Convolution::causal("test", 3, 9, none), std::invalid_argument);
  CHECK_THROWS_AS(Convolution::bidirectional("test", 3, 9, filter, other), std::invalid_argument);
  CHECK_THROWS_AS(Convolution::circular("test", 4, filter), std::invalid_argument);
}

}  // namespace
}  // namespace seqmix::test
