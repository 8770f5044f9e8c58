// Attention over random features: the unit of the sums changes as keys grow, and any stabilizer may be given or none.
#include <seqmix/engine/random_feature_attention.hpp>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <vector>

namespace {

using namespace seqmix;

constexpr Index heads = 2, key_dim = 5, value_dim = 11, feature_count = 19;
constexpr double kernel_eps = 1e-3, denominator_eps = 1e-2;

/// Stands for a stabilizer that is not given.
constexpr double none = std::numeric_limits<double>::quiet_NaN();

/// u and |x'|^2 / 2 of every token of a head.
struct Projected {
  Matrix<double> u;
  Vector<double> half_square;

  template <class T>
  Projected(const Matrix<T>& x, const Matrix<T>& projection, Index h) {
    const Matrix<double> of_head =
        x.middleCols(h * key_dim, key_dim).template cast<double>() * std::pow(double(key_dim), -0.25);
    u = of_head * projection.template cast<double>().transpose();
    half_square = of_head.rowwise().squaredNorm() / 2;
  }
};

template <class T>
struct Case {
  explicit Case(Index tokens, double growth, Rng& rng)
      : length(tokens),
        query(normal_matrix<T>(length, heads * key_dim, 1.0, rng)),
        key(normal_matrix<T>(length, heads * key_dim, 1.0, rng)),
        value(normal_matrix<T>(length, heads * value_dim, 1.0, rng)),
        output(length, heads * value_dim),
        projection(orthogonal_random_features<T>(feature_count, key_dim, RandomFeatureNorms::constant, rng)),
        features(projection) {
    for (Index t = 0; t < length; ++t) key.row(t) *= T(0.1 + growth * double(t) / double(length));
    value = value.cwiseMax(T(-1)).cwiseMin(T(1));
    output.setConstant(std::numeric_limits<T>::quiet_NaN());
  }

  static auto rows(const Matrix<T>& matrix, Index begin, Index count) {
    return ConstSequence<T>(matrix).rows(begin, count).heads(heads);
  }

  /// Tokens begin .. begin + count - 1, with a stabilizer for all heads or, where it is NaN, without.
  void run(RandomFeatureMemory<T>& state, Index begin, Index count, double stabilizer) {
    const std::vector<T> row(static_cast<std::size_t>(heads), T(stabilizer));
    const Sequence<const T> given =
        std::isnan(stabilizer) ? Sequence<const T>() : Sequence<const T>(row.data(), count, heads, 0);
    random_feature_attention<random_feature::Softmax, T>(
        rows(query, begin, count), rows(key, begin, count), rows(value, begin, count), features,
        {T(kernel_eps), T(denominator_eps)}, state, Sequence<T>(output).rows(begin, count).heads(heads), given,
        workspace);
  }

  /// The equations, where token t is given stabilizer_of(t), or without one where that is NaN.
  template <class StabilizerOf>
  void check(bool causal, StabilizerOf&& stabilizer_of) const {
    double largest_exponent = 0, worst = 0;
    for (Index h = 0; h < heads; ++h) {
      const Projected q(query, projection, h), k(key, projection, h);
      largest_exponent = std::max({largest_exponent, 2 * q.u.cwiseAbs().maxCoeff() + q.half_square.maxCoeff(),
                                   2 * k.u.cwiseAbs().maxCoeff() + k.half_square.maxCoeff()});
      for (Index t = 0; t < length; ++t) {
        const Index count = causal ? t + 1 : length;
        const double given = stabilizer_of(t), M = std::isnan(given) ? k.u.topRows(count).maxCoeff() : given;
        const Vector<double> phi = (q.u.row(t).array() - q.half_square[t] - q.u.row(t).maxCoeff()).exp() + kernel_eps;
        double sum = denominator_eps * phi.sum();
        Vector<double> expected = Vector<double>::Zero(value_dim);
        for (Index s = 0; s < count; ++s) {
          const double weight = phi.dot(Vector<double>((k.u.row(s).array() - k.half_square[s] - M).exp() + kernel_eps));
          sum += weight;
          expected += weight * value.row(s).segment(h * value_dim, value_dim).template cast<double>();
        }
        expected /= sum;
        for (Index i = 0; i < value_dim; ++i) {
          const double error = std::abs(double(output(t, h * value_dim + i)) - expected[i]);
          worst = error <= worst ? worst : error;  // NaN counts
        }
      }
    }
    // Exponents are sums of as many products as a key has numbers, and their errors those of weights of query and of key;
    // a mean of numbers up to 1 is off by twice as much.
    CHECK(worst <= 4 * double(key_dim + 2) * largest_exponent * double(std::numeric_limits<T>::epsilon()));
  }

  Index length;
  Matrix<T> query, key, value, output, projection;
  RandomFeatures<T> features;
  Workspace workspace;
};

const Shape memory_shape{heads, feature_count, value_dim};

}  // namespace

TEMPLATE_TEST_CASE("random feature attention rescales its sums as keys grow", "[random_feature_attention]", float,
                   double) {
  Rng rng(5);
  for (const double growth : {-0.1, 1.0, 6.0}) {
    Case<TestType> c(600, growth, rng);
    const auto run = [&](const std::vector<Index>& cuts, auto stabilizer_of) {
      RandomFeatureMemory<TestType> state(memory_shape);
      for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
        c.run(state, cuts[i], cuts[i + 1] - cuts[i], stabilizer_of(cuts[i]));
      }
      c.check(true, stabilizer_of);
    };
    run({0, 600}, [](Index) { return none; });
    run({0, 1, 2, 9, 17, 150, 151, 300, 600}, [](Index) { return none; });
    // Far from the largest number, and changed on the way.
    run({0, 600}, [](Index) { return 60.0; });
    run({0, 600}, [](Index) { return -60.0; });
    run({0, 3, 200, 300, 600}, [](Index t) { return t < 200 ? none : t < 300 ? 3.0 : -2.0; });
  }
}

TEMPLATE_TEST_CASE("random feature attention without order", "[random_feature_attention]", float, double) {
  Rng rng(6);
  for (const double growth : {-0.1, 1.0, 6.0}) {
    Case<TestType> c(200, growth, rng);
    random_feature_attention_global<random_feature::Softmax, TestType>(
        c.rows(c.query, 0, 200), c.rows(c.key, 0, 200), c.rows(c.value, 0, 200), c.features,
        {TestType(kernel_eps), TestType(denominator_eps)}, Sequence<TestType>(c.output).heads(heads), c.workspace);
    c.check(false, [](Index) { return none; });
  }
}

TEST_CASE("errors of random feature attention do not grow with the length", "[random_feature_attention]") {
  // The same keys again and again: the last token of a round reads whole multiples of the weights of one round.
  constexpr Index period = 500, early = 20, late = 400;
  Rng rng(7);
  Case<float> c(period, 1.0, rng);
  RandomFeatureMemory<float> state(memory_shape);
  Matrix<double> outputs[2];
  for (Index round = 1; round <= late; ++round) {
    for (Index t = 0, count = 0; t < period; t += count) {
      count = std::min(Index(round % 3 == 0 ? 1 : 100), period - t);
      c.run(state, t, count, 8.0);
    }
    if (round == early || round == late) outputs[round == late] = c.output.template cast<double>();
  }
  double errors[2];
  for (Index i = 0; i < 2; ++i) {
    const double rounds = double(i == 0 ? early : late);
    errors[i] = 0;
    for (Index h = 0; h < heads; ++h) {
      const Projected q(c.query, c.projection, h), k(c.key, c.projection, h);
      const Index t = period - 1;
      const Vector<double> phi = (q.u.row(t).array() - q.half_square[t] - q.u.row(t).maxCoeff()).exp() + kernel_eps;
      double sum = denominator_eps * phi.sum();
      Vector<double> expected = Vector<double>::Zero(value_dim);
      for (Index s = 0; s < period; ++s) {
        const double weight =
            rounds * phi.dot(Vector<double>((k.u.row(s).array() - k.half_square[s] - 8).exp() + kernel_eps));
        sum += weight;
        expected += weight * c.value.row(s).segment(h * value_dim, value_dim).cast<double>();
      }
      expected /= sum;
      errors[i] = std::max(
          errors[i],
          (Vector<double>(outputs[i].row(t).segment(h * value_dim, value_dim)) - expected).cwiseAbs().maxCoeff());
    }
  }
  INFO("error " << errors[0] << " after " << early * period << " tokens, " << errors[1] << " after " << late * period);
  CHECK(errors[1] <= 3 * std::max(errors[0], 4 * double(std::numeric_limits<float>::epsilon())));
}

TEMPLATE_TEST_CASE("random features are orthogonal in blocks", "[random_feature_attention]", float, double) {
  Rng rng(8);
  const auto P = orthogonal_random_features<TestType>(13, 5, RandomFeatureNorms::constant, rng);
  for (Index i = 0; i < 13; ++i) {
    for (Index j = 0; j <= i; ++j) {
      if (i / 5 != j / 5) continue;
      const double product = P.row(i).template cast<double>().dot(P.row(j).template cast<double>());
      CHECK(std::abs(product - (i == j ? 5 : 0)) <= 20 * double(std::numeric_limits<TestType>::epsilon()));
    }
  }
}
