// ReBased: the core functions and the layer.
#include <catch2/catch_template_test_macros.hpp>
#include <cmath>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/rebased.hpp>
#include <type_traits>

#include "support/polynomial_attention.hpp"
#include "support/registry.hpp"
#include "support/scalars.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

struct RebasedOperator {
  using Polynomial = polynomial::Square;
  static constexpr const char* feature_map = "quadratic";
  template <class T>
  static constexpr auto causal = &rebased<T>;
  template <class T>
  static constexpr auto bidirectional = &rebased_bidirectional<T>;
  template <class T, Direction direction>
  using Layer = Rebased<T, direction>;
  static void read_further(GoldenConfig& config, auto& result) {
    result.normalize_input = config.boolean("normalize_input");
    result.use_gamma = config.boolean("use_gamma");
    result.use_beta = config.boolean("use_beta");
    result.norm_eps = decltype(result.norm_eps)(config.number("ln_eps", 1e-5));
  }
};

template <class T>
using RebasedCoreGolden = PolynomialCoreGolden<RebasedOperator, T>;
template <class T>
using RebasedLayerGolden = PolynomialLayerGolden<RebasedOperator, T>;

const GoldenRegistration<RebasedCoreGolden> core_golden{"rebased", "core"};
const GoldenRegistration<RebasedLayerGolden> layer_golden{"rebased", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

template <Direction direction>
struct RebasedTests {
  static constexpr const char* name = direction == Direction::causal ? "rebased" : "rebased, bidirectional";
  template <class T>
  using Mixer = Rebased<T, direction>;

  // A memory of products knows the weight of a token up to a rounding error of the largest weight that such a query and key
  // can have, and tokens whose weights all vanish divide by little else. So either beta keeps q . k away from 0 here, or
  // epsilon the denominator, in proportion to that largest weight, which is the number of features after a plain norm.
  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 3);
    const PolynomialAttentionOptions<T> bounded{.epsilon = T(0.1)};
    return {
        {"one head of 1, one feature", {.channels = 1, .heads = 1, .feature_dim = 1, .normalize_input = false}},
        {"two heads, two features", {.channels = 6, .heads = 2, .feature_dim = 2}},
        {"three heads of 5, 7 features, no gamma", {.channels = 15, .heads = 3, .feature_dim = 7, .use_gamma = false}},
        {"16 features, two heads of 33, no beta",
         {.channels = 66, .heads = 2, .feature_dim = 16, .options = bounded, .use_beta = false}},
        {"32 features, norm without gamma and beta",
         {.channels = 8,
          .heads = 1,
          .feature_dim = 32,
          .options = {.epsilon = T(0.5)},
          .use_gamma = false,
          .use_beta = false,
          .norm_eps = T(0.1)}},
        {"not normalised, scale 2",
         {.channels = 12, .heads = 3, .feature_dim = 4, .options = {.scale = T(2), .normalize = false}}},
        {"no norm of the input", {.channels = 12, .heads = 3, .feature_dim = 8, .normalize_input = false}},
        {"queries and keys as they are",
         {.channels = 12,
          .heads = 2,
          .options = bounded,
          .normalize_input = false,
          .use_gamma = false,
          .use_beta = false}},
        {"random", {.channels = heads * rng.integer(1, 17), .heads = heads, .feature_dim = rng.integer(2, 20)}}};
  }

  static typename Mixer<double>::Weights weights(const typename Mixer<double>::Config& config, Rng& rng) {
    auto result = Mixer<double>::random_weights(config, rng);
    stir(result, rng);
    result.beta.array() += 1.5;
    return result;
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    const auto prepared = [&](const Matrixd& projection) {
      Matrixd result = linear(x, projection);
      for (Index h = 0; h < config.heads; ++h) {
        Matrixd z = head(result, h, config.heads);
        if (config.normalize_input) z = layer_norm(z, config.norm_eps);
        for (Index t = 0; t < z.rows(); ++t) {
          for (Index i = 0; i < z.cols(); ++i) {
            if (config.use_gamma) z(t, i) *= weights.gamma[i];
            if (config.use_beta) z(t, i) += weights.beta[i];
          }
        }
        set_head(result, h, config.heads, z);
      }
      return result;
    };
    return linear(polynomial_heads<direction>(prepared(weights.query), prepared(weights.key), linear(x, weights.value),
                                              config.heads, config.options, [](double s) { return s * s; }),
                  weights.output);
  }
};

const MixerRegistration<RebasedTests<Direction::causal>> causal;
const MixerRegistration<RebasedTests<Direction::bidirectional>> bidirectional;

TEMPLATE_TEST_CASE("rebased: tokens whose values are 0 stay in the denominator", "[rebased]", float, double) {
  using T = TestType;
  if constexpr (scalar_tested<T>) {
    constexpr Index length = 21, before = 20, features = polynomial::Square::features(4);
    Rng rng(3);
    const Matrix<T> query = normal_matrix<T>(length, 4, 1.0, rng), key = normal_matrix<T>(length, 4, 1.0, rng);
    Matrix<T> value = Matrix<T>::Zero(length, 3), y(length, 3);
    value.row(before).setOnes();
    Tensor<T> memory({1, features, 3}), key_sum({1, features});
    Workspace workspace;
    for (const Index begin : {Index(0), before}) {
      const Index count = begin == 0 ? before : length - before;
      const auto rows = [&](const auto& stream) { return ConstSequence<T>(stream).rows(begin, count).heads(1); };
      rebased<T>(rows(query), rows(key), rows(value), {}, memory, {key_sum.data(), 1, features},
                 Sequence<T>(y).rows(begin, count).heads(1), workspace);
    }
    const Matrix<double> s = key.template cast<double>() * query.row(before).transpose().template cast<double>() / 2;
    const double expected = s(before, 0) * s(before, 0) / (s.squaredNorm() + 1e-6);
    CHECK(std::abs(double(y(before, 0)) - expected) <= (std::is_same_v<T, float> ? 1e-5 : 1e-13));
  }
}

}  // namespace
}  // namespace seqmix::test
