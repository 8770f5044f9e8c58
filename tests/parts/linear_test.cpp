// Linear projections: fused weights, biases, errors. Their arithmetic is tested with the packed product.
#include <seqmix/parts/linear.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <limits>
#include <seqmix/core/random.hpp>
#include <stdexcept>

namespace {

using seqmix::Index;
using seqmix::Linear;
using seqmix::Matrix;
using seqmix::Rng;
using seqmix::Sequence;
using seqmix::Vector;
using seqmix::Workspace;

template <class T>
Vector<T> normal_vector(Index size, Rng& rng) {
  return seqmix::normal_matrix<T>(size, 1, 1, rng);
}

// (x W^T + b) in double, and the bound of the error of a sum of that many terms around 1.
template <class T>
Eigen::MatrixXd expected(const Matrix<T>& x, const Matrix<T>& weight, const Vector<T>& bias) {
  Eigen::MatrixXd y = x.template cast<double>() * weight.template cast<double>().transpose();
  if (bias.size() > 0) y.rowwise() += bias.template cast<double>().transpose();
  return y;
}

// Sum of |terms| is below 2 * inputs for normal numbers, each product is rounded once.
template <class T>
double tolerance(Index inputs) {
  return 2.0 * double(inputs * inputs) * double(std::numeric_limits<T>::epsilon());
}

template <class T>
double difference(const Eigen::MatrixXd& a, const Matrix<T>& b) {
  return (a - b.template cast<double>()).cwiseAbs().maxCoeff();
}

}  // namespace

TEMPLATE_TEST_CASE("a linear projection with and without bias", "[linear]", float, double) {
  using T = TestType;
  Rng rng(1);
  Workspace workspace;
  const Index inputs = 20, outputs = 37;
  const Matrix<T> weight = seqmix::normal_matrix<T>(outputs, inputs, 1, rng);
  const Vector<T> bias = normal_vector<T>(outputs, rng);
  for (const Index length : {1, 3, 50}) {
    const Matrix<T> x = seqmix::normal_matrix<T>(length, inputs, 1, rng);
    for (const Vector<T>& b : {Vector<T>(), bias}) {
      const Linear<T> linear(weight, b);
      REQUIRE(linear.inputs() == inputs);
      REQUIRE(linear.outputs() == outputs);
      Matrix<T> y = Matrix<T>::Constant(length, outputs, std::numeric_limits<T>::quiet_NaN());
      linear.apply(x, y, workspace);
      CHECK(difference<T>(expected<T>(x, weight, b), y) <= tolerance<T>(inputs));

      const auto frame = workspace.frame();
      const Sequence<T> taken = linear.apply(x, workspace);
      REQUIRE(taken.length() == length);
      REQUIRE(taken.channels() == outputs);
      for (Index t = 0; t < length; ++t) {
        for (Index n = 0; n < outputs; ++n) REQUIRE(taken(t, n) == y(t, n));
      }

      Matrix<T> sum = seqmix::normal_matrix<T>(length, outputs, 1, rng);
      const Eigen::MatrixXd before = sum.template cast<double>();
      linear.add_to(x, sum, workspace);
      CHECK(difference<T>(before + expected<T>(x, weight, b), sum) <= tolerance<T>(inputs));
    }
  }
}

TEMPLATE_TEST_CASE("fused projections stand side by side", "[linear]", float, double) {
  using T = TestType;
  Rng rng(2);
  Workspace workspace;
  const Index inputs = 12, length = 9;
  const Matrix<T> query = seqmix::normal_matrix<T>(7, inputs, 1, rng),
                  key = seqmix::normal_matrix<T>(20, inputs, 1, rng),
                  value = seqmix::normal_matrix<T>(5, inputs, 1, rng);
  const Vector<T> query_bias = normal_vector<T>(7, rng), value_bias = normal_vector<T>(5, rng), none;
  const Matrix<T> x = seqmix::normal_matrix<T>(length, inputs, 1, rng);
  Matrix<T> y(length, 32);
  const auto check = [&](const Vector<T>& q, const Vector<T>& v) {
    CHECK(difference<T>(expected<T>(x, query, q), y.leftCols(7)) <= tolerance<T>(inputs));
    CHECK(difference<T>(expected<T>(x, key, none), y.middleCols(7, 20)) <= tolerance<T>(inputs));
    CHECK(difference<T>(expected<T>(x, value, v), y.rightCols(5)) <= tolerance<T>(inputs));
  };
  Linear<T>({&query, &key, &value}).apply(x, y, workspace);
  check(none, none);
  Linear<T>({&query, &key, &value}, {&query_bias, &none, &value_bias}).apply(x, y, workspace);
  check(query_bias, value_bias);
  Linear<T>({&query, &key, &value}, {nullptr, &none, &value_bias}).apply(x, y, workspace);
  check(none, value_bias);
}

TEST_CASE("an empty projection and an empty sequence are legal", "[linear]") {
  Workspace workspace;
  const Linear<float> none;
  CHECK(none.inputs() == 0);
  CHECK(none.outputs() == 0);
  Matrix<float> x(3, 0), y(3, 0);
  none.apply(x, y, workspace);

  const Matrix<float> weight = Matrix<float>::Ones(4, 2);
  Matrix<float> no_rows(0, 2), no_output(0, 4);
  Linear<float>(weight).apply(no_rows, no_output, workspace);

  const Matrix<float> no_inputs(4, 0);
  const Vector<float> bias = Vector<float>::LinSpaced(4, 0, 3);
  Matrix<float> only_bias = Matrix<float>::Constant(3, 4, std::numeric_limits<float>::quiet_NaN());
  Linear<float>(no_inputs, bias).apply(x, only_bias, workspace);
  for (Index t = 0; t < 3; ++t) CHECK(only_bias.row(t) == bias.transpose());
}

TEST_CASE("shapes that do not fit are refused", "[linear]") {
  const Matrix<float> weight = Matrix<float>::Ones(4, 2), other = Matrix<float>::Ones(4, 3);
  const Vector<float> bias = Vector<float>::Ones(3);
  using Catch::Matchers::Message;
  CHECK_THROWS_MATCHES(Linear<float>(weight, bias), std::invalid_argument,
                       Message("Linear: bias: expected shape [4], given [3]"));
  CHECK_THROWS_MATCHES((Linear<float>({&weight, &other})), std::invalid_argument,
                       Message("Linear: weight: expected shape [4, 2], given [4, 3]"));
  CHECK_THROWS_AS((Linear<float>({&weight, &weight}, {&bias})), std::invalid_argument);
}
