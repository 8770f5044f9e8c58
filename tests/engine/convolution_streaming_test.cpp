// Causal convolution over whole sequences, pieces and single tokens against its definition.
//
// Bounds: an output is the sum of the pairs within a block, at most 64 products, and of one tile of each size, with the
// error of a transform: 4 eps log2(N) of the root mean square in all.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <seqmix/simd/arch.hpp>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "support/allocations.hpp"
#include "support/executors.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;

template <class T>
Matrix<T> random_matrix(Index rows, Index columns, Rng& rng) {
  return Matrix<T>::NullaryExpr(rows, columns, [&] { return T(rng.normal()); });
}

/// In units of what is allowed.
template <class T>
double error_of(const Matrix<T>& filter, ConstSequence<T> x, const Matrix<T>& y) {
  const Index length = x.length();
  double differences = 0, squares = 0;
  for (Index t = 0; t<length; t += length> 5000 && t + 100 < length ? 97 : 1) {
    for (Index row = 0; row < filter.rows(); ++row) {
      Wide<T> sum = 0;
      for (Index l = 0; l < std::min(filter.cols(), t + 1); ++l) {
        sum += Wide<T>(filter(row, l)) * Wide<T>(x(t - l, row % x.channels()));
      }
      differences += std::pow(double(Wide<T>(y(t, row)) - sum), 2);
      squares += std::pow(double(sum), 2);
    }
  }
  const double transform = std::log2(double(std::max<Index>(filter.cols(), 32)));
  return std::sqrt(differences / squares) / (4 * double(std::numeric_limits<T>::epsilon()) * transform);
}

constexpr StreamingSchedule schedules[] = {StreamingSchedule::amortised, StreamingSchedule::balanced};

/// A convolution on its way.
template <class T>
struct Stream {
  explicit Stream(const StreamingConvolution<T>& with) : convolution(&with), state(with.state_shape()) {}
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) {
    convolution->run(state.data(), position, x, y, workspace);
    position += x.length();
  }
  const StreamingConvolution<T>* convolution;
  Tensor<T> state;
  Index position = 0;
};

TEMPLATE_TEST_CASE("causal convolutions of any length, whole, in steps and in pieces", "[convolution]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  struct {
    Index length, channels, outputs, taps;
  } const all[] = {{1, 1, 1, 1},
                   {40, 3, 1, 1},
                   {31, 8, 1, 31},
                   {32, 17, 1, 2},
                   {33, 64, 1, 33},
                   {100, 3, 1, 500},
                   {300, 5, 1, 32},
                   {300, 5, 2, 63},
                   {300, 5, 1, 64},
                   {300, 5, 3, 65},
                   {700, 17, 1, 129},
                   {1025, 1, 1, 700},
                   {2100, 3, 2, 40},
                   {2100, 3, 1, 2048},
                   {4097, 2, 1, 4097},
                   {20000, 1, 1, 9000},
                   {9000, 16 * lanes<T> + 5, 1, 2100}};
  for (const auto& [length, channels, outputs, taps] : all) {
    INFO(length << " tokens, " << channels << " channels, " << outputs << " outputs, " << taps << " taps");
    const Matrix<T> filter = random_matrix<T>(outputs * channels, taps, rng);
    const Matrix<T> x = random_matrix<T>(length, channels + 1, rng);
    const auto inputs = ConstSequence<T>(x).columns(0, channels);
    const Matrix<T> nothing = Matrix<T>::Constant(length, outputs * channels, std::numeric_limits<T>::quiet_NaN());
    Matrix<T> whole;
    for (const StreamingSchedule schedule : schedules) {
      INFO((schedule == StreamingSchedule::balanced ? "balanced" : "amortised"));
      const StreamingConvolution<T> convolution("test", channels, filter, schedule);
      Matrix<T> y = nothing;
      workspace.poison();
      convolution.forward(inputs, y, workspace);
      if (whole.size() == 0) {
        CHECK(error_of<T>(filter, inputs, y) <= 1);
        whole = y;
      }
      CHECK(y == whole);
      y = nothing;
      Stream<T> steps(convolution);
      for (Index t = 0; t < length; ++t) {
        if (t % 50 == 0) workspace.poison();
        steps.run(inputs.rows(t, 1), Sequence<T>(y).rows(t, 1), workspace);
      }
      CHECK(error_of<T>(filter, inputs, y) <= 1);
      for (const Index most : {Index(50), Index(200), length}) {
        INFO("in pieces of up to " << most);
        y = nothing;
        Stream<T> stream(convolution), copy = stream;
        for (Index begin = 0; begin < length;) {
          const Index count = most == length ? length : std::min(length - begin, rng.integer(0, most));
          workspace.poison();
          copy = stream;
          stream.run(inputs.rows(begin, count), Sequence<T>(y).rows(begin, count), workspace);
          // Copies go on alike.
          Matrix<T> again(count, y.cols());
          copy.run(inputs.rows(begin, count), again, workspace);
          CHECK(again == y.middleRows(begin, count));
          CHECK(copy.state == stream.state);
          begin += count;
        }
        CHECK(error_of<T>(filter, inputs, y) <= 1);
      }
    }
  }
}

TEST_CASE("steps of convolutions, and those of few taps, never change what was put out", "[convolution]") {
  Rng rng(test_seed);
  Workspace workspace;
  struct {
    Index taps;
    StreamingSchedule schedule;
    Index piece;
  } const all[] = {{40, StreamingSchedule::amortised, 50},
                   {200, StreamingSchedule::amortised, 1},
                   {200, StreamingSchedule::balanced, 1},
                   {200, StreamingSchedule::balanced, 50}};
  for (const auto& [taps, schedule, piece] : all) {
    const Matrix<float> filter = random_matrix<float>(5, taps, rng);
    const StreamingConvolution<float> convolution("test", 5, filter, schedule);
    Matrix<float> x = random_matrix<float>(500, 5, rng), y(500, 5), z(500, 5);
    const auto run = [&](Matrix<float>& to) {
      Stream<float> stream(convolution);
      for (Index t = 0; t < 500; t += piece) {
        stream.run(ConstSequence<float>(x).rows(t, piece), Sequence<float>(to).rows(t, piece), workspace);
      }
    };
    run(y);
    x.bottomRows(177).setConstant(std::numeric_limits<float>::quiet_NaN());
    run(z);
    CHECK(z.topRows(323) == y.topRows(323));
    CHECK(z.row(323).array().isNaN().all());
  }
}

TEST_CASE("streaming convolutions give the same bits on any executor", "[convolution]") {
  Rng rng(test_seed);
  for (const auto& [taps, schedule] :
       {std::pair(Index(40), StreamingSchedule::amortised), std::pair(Index(150), StreamingSchedule::amortised),
        std::pair(Index(150), StreamingSchedule::balanced)}) {
    const Matrix<float> filter = random_matrix<float>(37, taps, rng), x = random_matrix<float>(400, 37, rng);
    const StreamingConvolution<float> convolution("test", 37, filter, schedule);
    Matrix<float> expected, whole;
    for (const auto& [name, executor] : all_executors()) {
      INFO(name);
      Workspace workspace(*executor);
      Stream<float> stream(convolution);
      Matrix<float> y(400, 37), z(400, 37);
      stream.run(ConstSequence<float>(x).rows(0, 50), Sequence<float>(y).rows(0, 50), workspace);
      stream.run(ConstSequence<float>(x).rows(50, 350), Sequence<float>(y).rows(50, 350), workspace);
      convolution.forward(x, z, workspace);
      if (expected.size() == 0) expected = y, whole = z;
      CHECK(y == expected);
      CHECK(z == whole);
    }
  }
}

TEST_CASE("streaming convolutions allocate nothing after one step", "[convolution]") {
  Rng rng(test_seed);
  for (const auto& [taps, schedule] :
       {std::pair(Index(40), StreamingSchedule::amortised), std::pair(Index(300), StreamingSchedule::amortised),
        std::pair(Index(300), StreamingSchedule::balanced)}) {
    Workspace workspace;
    const Matrix<float> filter = random_matrix<float>(19, taps, rng), x = random_matrix<float>(1100, 19, rng);
    const StreamingConvolution<float> convolution("test", 19, filter, schedule);
    Matrix<float> y(1100, 19);
    Stream<float> stream(convolution), copy = stream;
    copy.run(ConstSequence<float>(x).rows(0, 1), Sequence<float>(y).rows(0, 1), workspace);
    const std::size_t before = allocation_count();
    for (Index t = 0; t < 1100; ++t) {
      stream.run(ConstSequence<float>(x).rows(t, 1), Sequence<float>(y).rows(t, 1), workspace);
    }
    CHECK(allocation_count() == before);
  }
}

TEST_CASE("streaming convolutions refuse filters without taps", "[convolution]") {
  CHECK_THROWS_AS(StreamingConvolution<float>("test", 3, Matrix<float>(3, 0)), std::invalid_argument);
  CHECK_THROWS_AS(StreamingConvolution<float>("test", 3, Matrix<float>(0, 3)), std::invalid_argument);
  CHECK_THROWS_AS(StreamingConvolution<float>("test", 3, Matrix<float>(4, 3)), std::invalid_argument);
}

TEMPLATE_TEST_CASE("convolutions with filters of one time", "[convolution]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  const OneTimeConvolution<T> convolution(600);
  for (const Index length : {1, 2, 15, 16, 17, 100, 512, 600}) {
    for (const Index channels : {1, 5, 16}) {
      INFO(length << " tokens, " << channels << " channels");
      const Index outputs = 2;
      const Matrix<T> taps = random_matrix<T>(2 * length - 1, outputs * channels, rng);  // lag 0 in the middle
      const Matrix<T> x = random_matrix<T>(length, channels, rng);
      Matrix<T> y(length, outputs * channels);
      const auto row = [&](Index lag) { return lag == 3 ? nullptr : taps.data() + (lag + length - 1) * taps.cols(); };
      workspace.poison();
      convolution.run(outputs, row, x, y, workspace);
      const std::size_t before = allocation_count();
      convolution.run(outputs, row, x, y, workspace);
      CHECK(allocation_count() == before);
      double differences = 0, squares = 0;
      for (Index t = 0; t < length; ++t) {
        for (Index i = 0; i < outputs * channels; ++i) {
          Wide<T> sum = 0;
          for (Index s = 0; s < length; ++s) {
            if (t - s != 3) sum += Wide<T>(taps(t - s + length - 1, i)) * Wide<T>(x(s, i % channels));
          }
          differences += std::pow(double(Wide<T>(y(t, i)) - sum), 2);
          squares += std::pow(double(sum), 2);
        }
      }
      const double allowed = 4 * double(std::numeric_limits<T>::epsilon()) * std::log2(std::max(16.0, double(length)));
      CHECK(std::sqrt(differences / squares) <= allowed);
    }
  }
}

}  // namespace
}  // namespace seqmix::test
