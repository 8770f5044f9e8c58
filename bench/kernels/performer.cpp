#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <seqmix/linear/performer.hpp>
#include <vector>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index heads = 12, key_dim = 64, value_dim = 64, feature_count = 266;

struct Data {
  Data(Index length, int threads)
      : query(length, heads, key_dim, -2, 2, rng),
        key(length, heads, key_dim, -2, 2, rng),
        value(length, heads, value_dim, -1, 1, rng),
        output(length, heads, value_dim),
        projection(orthogonal_random_features<float>(feature_count, key_dim, RandomFeatureNorms::gaussian, rng)),
        features(projection),
        workspace(executor(threads)) {
    clear();
  }

  void clear() { state = PerformerState<float>(Shape{heads, feature_count, value_dim}); }

  void run(Index begin, Index count) {
    const auto rows = [&](Tensor& tensor) { return tensor.view().rows(begin, count); };
    performer<random_feature::Softmax, float>(rows(query), rows(key), rows(value), features, {}, state, rows(output),
                                              workspace);
  }

  /// u and |x'|^2 / 2 of a row.
  std::pair<std::vector<double>, double> project(const float* x) const {
    std::vector<double> u;
    double squares = 0;
    for (Index i = 0; i < key_dim; ++i) squares += double(x[i]) * double(x[i]);
    for (Index j = 0; j < feature_count; ++j) {
      double sum = 0;
      for (Index i = 0; i < key_dim; ++i) sum += double(projection(j, i)) * double(x[i]);
      u.push_back(sum / std::pow(double(key_dim), 0.25));
    }
    return {u, squares / 2 / std::sqrt(double(key_dim))};
  }

  /// Compares some tokens from `begin` on with the equations in double, for the first head and the last.
  void check(Index begin, Index length) const {
    constexpr double kernel_eps = 1e-4;
    const double denominator_eps = 1e-6 * std::sqrt(double(feature_count));
    Comparison comparison;
    for (const Index h : {Index(0), heads - 1}) {
      std::vector<std::vector<double>> keys;  // u - |k'|^2 / 2
      std::vector<double> largest;            // the largest u so far
      for (Index s = 0; s < length; ++s) {
        auto [u, half_square] = project(key.view().row(s, h));
        const double most = *std::max_element(u.begin(), u.end());
        largest.push_back(s == 0 ? most : std::max(most, largest.back()));
        for (double& x : u) x -= half_square;
        keys.push_back(u);
      }
      for (const Index row : sampled_rows(length - begin)) {
        const Index t = begin + row;
        auto [phi, half_square] = project(query.view().row(t, h));
        const double most = *std::max_element(phi.begin(), phi.end());
        double weights = 0;
        for (double& x : phi) weights += denominator_eps * (x = std::exp(x - half_square - most) + kernel_eps);
        std::vector<double> expected(static_cast<std::size_t>(value_dim));
        for (Index s = 0; s <= t; ++s) {
          double weight = 0;
          for (std::size_t j = 0; j < phi.size(); ++j) {
            weight += phi[j] * (std::exp(keys[std::size_t(s)][j] - largest[std::size_t(t)]) + kernel_eps);
          }
          weights += weight;
          for (Index i = 0; i < value_dim; ++i) expected[std::size_t(i)] += weight * double(value.view()(s, h, i));
        }
        for (double& number : expected) number /= weights;
        comparison.add(output.view().row(t, h), expected.data(), value_dim);
      }
    }
    comparison.expect_within(5e-5, "the Performer");
  }

  Index state_bytes() const {
    return Index((state.memory.size() + state.key_sum.size() + state.value_sum.size()) * sizeof(float));
  }

  Rng rng{3};
  Tensor query, key, value, output;
  Matrix<float> projection;
  RandomFeatures<float> features;
  PerformerState<float> state;
  Workspace workspace;
};

const bool registered = add_core(
    "performer", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); },
    [](Index length) { return work::random_feature_attention(length, heads, key_dim, feature_count, value_dim); },
    work::random_feature_attention_step(heads, key_dim, feature_count, value_dim));

}  // namespace
}  // namespace seqmix::bench
