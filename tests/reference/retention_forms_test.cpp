// The forms of retention that only forward has, parallel and chunkwise, against their definitions.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <limits>
#include <seqmix/recurrent/retention.hpp>
#include <utility>
#include <vector>

#include "operators/retention_reference.hpp"
#include "support/executors.hpp"
#include "support/registry.hpp"
#include "support/tolerance.hpp"

namespace seqmix::test {
namespace {

template <class T>
std::vector<Configuration<Retention<T>>> configurations() {
  return {{"parallel", {.channels = 8, .heads = 2, .form = RetentionForm::parallel}},
          {"parallel, gelu gate, start at 7",
           {.channels = 18,
            .heads = 3,
            .value_channels = 15,
            .gate = RetentionGate::exact_gelu,
            .form = RetentionForm::parallel,
            .start_position = 7}},
          {"chunkwise, chunks of 1", {.channels = 8, .heads = 2, .form = RetentionForm::chunkwise, .chunk = 1}},
          {"chunkwise, chunks of 7",
           {.channels = 18, .heads = 3, .value_channels = 15, .form = RetentionForm::chunkwise, .chunk = 7}},
          {"chunkwise, chunks of 64", {.channels = 12, .heads = 1, .form = RetentionForm::chunkwise, .chunk = 64}}};
}

template <class T>
Matrix<T> forward(const Retention<T>& mixer, const Matrix<T>& x, Executor& executor = serial_executor()) {
  Workspace workspace(executor);
  Matrix<T> y = Matrix<T>::Constant(x.rows(), x.cols(), std::numeric_limits<T>::quiet_NaN());
  mixer.forward(x, y, workspace);
  return y;
}

template <class T>
bool same_bits(const Matrix<T>& a, const Matrix<T>& b, Index rows) {
  return std::memcmp(a.data(), b.data(), std::size_t(rows * a.cols()) * sizeof(T)) == 0;
}

TEMPLATE_TEST_CASE("retention, parallel and chunkwise forms", "", float, double) {
  using T = TestType;
  for (std::size_t which = 0; which < configurations<T>().size(); ++which) {
    const auto [name, config] = configurations<T>()[which];
    const auto exact_config = configurations<double>()[which].config;
    Rng rng(test_seed + which);
    auto exact_weights = Retention<double>::random_weights(exact_config, rng);
    stir(exact_weights, rng);
    // Large, so that the sums of absolute values rise above their lower bound of 1.
    exact_weights.query *= 4.0;
    exact_weights.key *= 2.0;
    typename Retention<T>::Weights weights;
    convert_weights(exact_weights, weights);
    convert_weights(weights, exact_weights);
    const Retention<T> mixer(config, weights);
    const Retention<double> exact(exact_config, exact_weights);
    for (const Index length : {0, 1, 2, 7, 8, 33, 64, 65, 130}) {
      INFO(name << ", length " << length);
      Matrix<T> x = normal_matrix<T>(length, config.channels, 1.0, rng);
      const Matrix<double> exact_x = x.template cast<double>();
      const Matrix<T> y = forward(mixer, x);
      const RowBounds bounds = row_bounds<T>([&](const Matrix<double>& rows) { return forward(exact, rows); }, exact_x);
      const Matrix<double> expected = retention_layer(exact_config, exact_weights, exact_x);
      CHECK(compare_rows(y, expected, bounds.allowed.data()) == "");
      for (const auto& [executor_name, executor] : all_executors()) {
        INFO(executor_name);
        CHECK(same_bits(forward(mixer, x, *executor), y, length));
      }
      const Index cut = length / 2;
      x.bottomRows(length - cut).setConstant(std::numeric_limits<T>::quiet_NaN());
      CHECK(same_bits(forward(mixer, x), y, cut));
    }
  }
}

}  // namespace
}  // namespace seqmix::test
