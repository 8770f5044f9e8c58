// What convolutions have in common: recurrences are convolutions with their impulse responses, over long sequences too.
//
// Bounds: those of transforms, 4 eps log2(N) of the root mean square of what is expected, and for recurrences 4 length eps, as
// in limits.hpp.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/convolution/gated_hyena.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <seqmix/engine/dilated_cascade.hpp>
#include <seqmix/engine/shift_system.hpp>
#include <vector>

#include "limits.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

/// As much as both ways may differ by, relative to the largest number.
template <class T>
double allowed(Index length) {
  return limits::tolerance<T>(length) + 4 * double(std::numeric_limits<T>::epsilon()) * std::log2(double(length) + 64);
}

template <class T>
Matrix<T> convolved(const Matrix<double>& filter, const Matrix<T>& x) {
  const StreamingConvolution<T> convolution("test", x.cols(), filter);
  Workspace workspace;
  Matrix<T> y(x.rows(), x.cols());
  convolution.forward(x, y, workspace);
  return y;
}

TEMPLATE_TEST_CASE("gated Hyena is a convolution with its modal filter between two gates", "", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  const Index length = 700, channels = 11;
  const GatedHyenaConfig config{.channels = channels, .modes = 5, .short_width = 1, .column_split = false};
  auto weights = GatedHyena<T>::random_weights(config, rng).core;
  weights.short_filter.setOnes(), weights.short_filter_bias.setZero();
  const GatedHyenaCore<T> core(config, weights);
  const Matrix<T> u = normal_matrix<T>(length, 3 * channels, 1.0, rng);
  auto state = core.initial_state();
  GatedHyenaState<T>* const states[] = {&state};
  const Index offsets[] = {0, length};
  Workspace workspace;
  Matrix<T> y(length, channels);
  {
    const auto frame = workspace.frame();
    core.run({states, offsets}, u, y, workspace);
  }
  Matrix<double> filter = core.filter(length);
  filter.col(0) += weights.skip.template cast<double>();
  const Matrix<T> gated = u.middleCols(channels, channels).cwiseProduct(u.rightCols(channels));
  const Matrix<T> expected = u.leftCols(channels).cwiseProduct(convolved<T>(filter, gated));
  CHECK(limits::difference<T>(expected, y) <= allowed<T>(length));
}

TEMPLATE_TEST_CASE("shifts and cascades are convolutions with their impulse responses", "", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  const Index length = 500, channels = 21;
  const Matrix<T> x = normal_matrix<T>(length, channels, 1.0, rng);
  Matrix<T> impulse = Matrix<T>::Zero(length, channels), response(length, channels), y(length, channels);
  impulse.row(0).setOnes();
  const auto check = [&](const auto& run) {
    run(impulse, response), run(x, y);
    const Matrix<double> filter = response.template cast<double>().transpose();
    CHECK(limits::difference<T>(convolved<T>(filter, x), y) <= allowed<T>(length));
  };
  const ShiftSystem<T> shift("test", normal_matrix<T>(channels, 9, 1.0, rng), normal_matrix<T>(channels, 9, 1.0, rng),
                             uniform_vector<T>(channels, -1, 1, rng));
  check([&](const Matrix<T>& from, Matrix<T>& to) {
    std::vector<T> state(std::size_t(shift.state_shape().size()));
    shift.run(from, state.data(), to, workspace);
  });
  const CascadeLevel levels[] = {{3, 5}, {0, 0}, {2, 3}, {1, 2}, {1, 1}};
  const DilatedCascade<T> cascade(normal_matrix<T>(channels, 3, 0.5, rng), normal_matrix<T>(channels, 3, 0.5, rng),
                                  normal_matrix<T>(channels, 9, 1.0, rng), levels);
  check([&](const Matrix<T>& from, Matrix<T>& to) {
    std::vector<T> state(std::size_t(cascade.state_shape().size()));
    cascade.run(state.data(), 0, from, to, workspace);
  });
}

/// In units of what transforms are allowed, over the last `length` - 1000 tokens and sampled rows.
void check_long(Index length) {
  Rng rng(test_seed);
  Workspace workspace;
  Matrix<float> filter(1, length), x(length, 1), whole(length, 1), pieces(length, 1);
  for (Index l = 0; l < length; ++l) filter(0, l) = float(rng.normal()), x(l, 0) = float(rng.normal());
  const StreamingConvolution<float> convolution("test", 1, filter);
  convolution.forward(x, whole, workspace);
  std::vector<float> state(std::size_t(convolution.state_shape().size()));
  for (Index t = 0, count = 0; t < length; t += count) {
    count = std::min(length - t, t % 3 == 0 ? Index(1) : Index(777));
    convolution.run(state.data(), t, ConstSequence<float>(x).rows(t, count), Sequence<float>(pieces).rows(t, count),
                    workspace);
  }
  double squares = 0, errors = 0, piece_errors = 0;
  for (Index t = length - 1; t >= 0; t -= 1 + length / 50) {
    double sum = 0;
    for (Index l = 0; l <= t; ++l) sum += double(filter(0, l)) * double(x(t - l, 0));
    squares += sum * sum;
    errors += std::pow(double(whole(t, 0)) - sum, 2), piece_errors += std::pow(double(pieces(t, 0)) - sum, 2);
  }
  const double unit = 4 * double(std::numeric_limits<float>::epsilon()) * std::log2(double(length));
  CHECK(std::sqrt(errors / squares) <= unit);
  CHECK(std::sqrt(piece_errors / squares) <= unit);
}

TEST_CASE("errors of convolutions with filters of 100,000 taps are those of transforms") { check_long(100000); }
TEST_CASE("errors of convolutions with filters of a million taps", "[.slow]") { check_long(1000000); }

}  // namespace
}  // namespace seqmix::test
