// Attention-free transformers and synthesizers where they must agree with one another, and at the ends of what numbers hold.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <seqmix/convolution/aft.hpp>
#include <seqmix/convolution/synthesizer.hpp>

namespace seqmix::test {
namespace {

using Catch::Matchers::ContainsSubstring;

template <class T>
struct Streams {
  Matrix<T> query, key, value;

  Streams(Index length, Index channels, Rng& rng)
      : query(normal_matrix<T>(length, channels, 1, rng)),
        key(normal_matrix<T>(length, channels, 2, rng)),
        value(normal_matrix<T>(length, channels, 1, rng)) {}

  Matrix<T> mix(const AftBias<T>& bias, bool causal, Index heads = 1) const {
    Matrix<T> y = Matrix<T>::Constant(value.rows(), value.cols(), std::numeric_limits<T>::quiet_NaN());
    Workspace workspace;
    const auto of = [&](const Matrix<T>& rows) { return Sequence<const T>(rows).heads(heads); };
    aft<T>(of(query), of(key), of(value), bias, causal, Sequence<T>(y).heads(heads), workspace);
    return y;
  }
};

template <class T>
double difference(const Matrix<T>& a, const Matrix<T>& b) {
  return double((a - b).cwiseAbs().maxCoeff());
}

TEMPLATE_TEST_CASE("the forms of an attention-free transformer agree where they are the same", "[aft]", float, double) {
  using T = TestType;
  constexpr double tolerance = 100 * double(std::numeric_limits<T>::epsilon());
  Rng rng(1);
  for (const bool causal : {true, false}) {
    for (const Index length : {1, 7, 121, 300}) {
      INFO(length << (causal ? ", causal" : ", bidirectional"));
      const Streams<T> streams(length, 37, rng);
      const Matrix<T> table = normal_matrix<T>(length, length, 1, rng), zeros = Matrix<T>::Zero(length, length);
      const auto mix = [&](AftForm form, const Matrix<T>& numbers, Index window, Index heads = 1) {
        return streams.mix({form, numbers, window}, causal, heads);
      };
      const Matrix<T> full = mix(AftForm::full, table, 0), simple = mix(AftForm::simple, {}, 0);
      CHECK(difference(full, mix(AftForm::local, table, length)) <= tolerance);
      CHECK(difference(simple, mix(AftForm::full, zeros, 0)) <= tolerance);
      CHECK(difference(simple, mix(AftForm::local, zeros, 5)) <= tolerance);
      if (!causal) continue;
      // Biases that depend on the distance alone.
      const Matrix<T> kernel = normal_matrix<T>(1, 9, 2, rng);
      Matrix<T> toeplitz = zeros;
      for (Index t = 0; t < length; ++t) {
        for (Index j = std::max(t - 8, Index(0)); j <= t; ++j) toeplitz(t, j) = kernel(0, t - j);
      }
      CHECK(difference(mix(AftForm::conv, kernel, 0), mix(AftForm::local, toeplitz, 9)) <= tolerance);
    }
  }
}

TEST_CASE("attention-free sums over a million tokens keep their digits", "[aft]") {
  constexpr Index length = 1'000'000;
  Matrix<float> key(length, 1), value(length, 1), query = Matrix<float>::Zero(length, 1), y(length, 1);
  double above = 0, below = 0, worst = 0;
  for (Index t = 0; t < length; ++t) {
    key(t, 0) = t == 0 ? 0.0f : -0.1f - 0.01f * float(t % 7);
    value(t, 0) = t < length / 2 ? 1.0f : 0.25f;
  }
  const auto heads = [](Matrix<float>& rows) { return Sequence<float>(rows).heads(1); };
  Workspace workspace;
  aft<float>(heads(query), heads(key), heads(value), {}, true, heads(y), workspace);
  for (Index t = 0; t < length; ++t) {
    const double weight = std::exp(double(key(t, 0)));
    above += weight * double(value(t, 0)), below += weight;
    worst = std::max(worst, std::abs(2 * double(y(t, 0)) * below / above - 1));
  }
  CHECK(worst < 1e-6);
}

TEMPLATE_TEST_CASE("biases and keys of minus infinity hide tokens", "[aft]", float, double) {
  using T = TestType;
  constexpr T hidden = -std::numeric_limits<T>::infinity();
  Rng rng(2);
  Streams<T> streams(150, 19, rng);
  const Matrix<T> mean = streams.mix({}, true);
  // Each token sees itself alone.
  Matrix<T> table = Matrix<T>::Constant(150, 150, hidden);
  table.diagonal().setConstant(T(-200));
  for (const Index window : {0, 150}) {
    const Matrix<T> y = streams.mix({window == 0 ? AftForm::full : AftForm::local, table, window}, true);
    for (Index t = 0; t < 150; ++t) {
      for (Index c = 0; c < 19; ++c) {
        const double gate = 1 / (1 + std::exp(-double(streams.query(t, c))));
        CHECK(std::abs(double(y(t, c)) - gate * double(streams.value(t, c))) < 1e-6);
      }
    }
  }
  // No weight for all tokens but every third.
  const Matrix<T> value = streams.value;
  for (Index t = 0; t < 150; ++t) {
    if (t % 3 != 0) streams.key.row(t).setConstant(hidden);
  }
  const Matrix<T> zeros = Matrix<T>::Zero(150, 150);
  const Matrix<T> y = streams.mix({AftForm::full, zeros, 0}, true), simple = streams.mix({}, true);
  const Matrix<T> local = streams.mix({AftForm::local, zeros, 4}, true);
  CHECK(y.allFinite());
  CHECK(difference(y, simple) < 1e-5);
  CHECK(difference(y, local) < 1e-5);
  CHECK(difference(y, mean) > 1e-2);
}

TEST_CASE("attention-free transformers and synthesizers refuse more tokens than they have biases for", "[aft]") {
  Rng rng(3);
  const Aft<float>::Config config{.channels = 4, .max_length = 6};
  const Aft<float> mixer(config, Aft<float>::random_weights(config, rng));
  const Synthesizer<float>::Config other{.channels = 4, .form = SynthesizerForm::random, .max_length = 6};
  const Synthesizer<float> synthesizer(other, Synthesizer<float>::random_weights(other, rng));
  const Matrix<float> x = normal_matrix<float>(7, 4, 1, rng), before = Matrix<float>::Constant(7, 4, 5.0f);
  Workspace workspace;
  const auto refuses = [&](const auto& some, const char* message) {
    Matrix<float> y = before;
    CHECK_THROWS_WITH(some.forward(x, y, workspace), ContainsSubstring(message));
    auto state = some.initial_state();
    some.prefill(state, x.topRows(5), y.topRows(5), workspace);
    y = before;
    CHECK_THROWS_WITH(some.prefill(state, x.topRows(2), y.topRows(2), workspace), ContainsSubstring(message));
    CHECK(y == before);
    some.step(state, x.row(5), y.row(5), workspace);
    CHECK_THROWS_WITH(some.step(state, x.row(6), y.row(6), workspace), ContainsSubstring(message));
    CHECK(y.row(6) == before.row(6));
    some.check_state(state);
  };
  refuses(mixer, "more tokens than there are biases for");
  refuses(synthesizer, "more tokens than config.max_length");
}

TEMPLATE_TEST_CASE("the forms of a synthesizer agree where they are the same", "[synthesizer]", float, double) {
  using T = TestType;
  constexpr Index most = 140, length = 133, heads = 2;
  Rng rng(4);
  const auto run = [&](SynthesizerCoreConfig config, const SynthesizerCoreWeights<T>& weights, const Matrix<T>& query,
                       const Matrix<T>& value) {
    config.heads = heads, config.head_dim = 3, config.value_dim = 5, config.max_length = most;
    const SynthesizerCore<T> core(config, weights);
    Matrix<T> y(length, heads * 5);
    Workspace workspace;
    const auto streams = Sequence<const T>(query).heads(heads);
    core.run(streams, streams, Sequence<const T>(value).heads(heads), true, Sequence<T>(y).heads(heads), workspace);
    return y;
  };
  constexpr double tolerance = 200 * double(std::numeric_limits<T>::epsilon());
  const Matrix<T> query = normal_matrix<T>(length, heads * 3, 1, rng), value = normal_matrix<T>(length, 10, 1, rng);
  const Matrix<T> nothing = Matrix<T>::Zero(length, heads * 3);

  SynthesizerCoreWeights<T> table, factors;
  factors.first = normal_matrix<T>(heads * most, 4, 1, rng), factors.second = normal_matrix<T>(heads * most, 4, 1, rng);
  table.random = Matrix<T>(heads * most, most);
  for (Index h = 0; h < heads; ++h) {
    for (Index t = 0; t < most; ++t) {
      for (Index j = 0; j < most; ++j) {
        table.random(h * most + t, j) = factors.first.row(h * most + t).dot(factors.second.row(h * most + j));
      }
    }
  }
  const Matrix<T> y = run({.form = SynthesizerForm::random}, table, query, value);
  CHECK(difference(y, run({.form = SynthesizerForm::factorized_random, .rank = 4}, factors, query, value)) <=
        tolerance);
  CHECK(difference(y, run({.form = SynthesizerForm::mixture}, table, nothing, value)) <= tolerance);

  // One hidden unit that is 1, and one factor that is 1.
  SynthesizerCoreWeights<T> dense, product;
  dense.hidden = product.factor_b = Matrix<T>::Zero(1, 3);
  dense.hidden_bias = product.factor_b_bias = Vector<T>::Ones(1);
  dense.logits = normal_matrix<T>(most, 1, 1, rng);
  dense.logits_bias = Vector<T>::Zero(most);
  product.factor_a = Matrix<T>::Zero(most, 3);
  product.factor_a_bias = dense.logits.col(0);
  CHECK(difference(run({.hidden = 1}, dense, query, value),
                   run({.form = SynthesizerForm::factorized_dense, .period_a = most, .period_b = 1}, product, query,
                       value)) <= tolerance);
}

}  // namespace
}  // namespace seqmix::test
