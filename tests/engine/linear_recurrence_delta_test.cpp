// The linear recurrence with delta policies, in every order of evaluation, against the token loop of the equations.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <vector>

#include "support/executors.hpp"

namespace seqmix::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

enum class Order { in_place, fused, chunked, dispatched };

/// Inputs of one problem, [length, heads, dim] without gaps. Keys and a have norm 1; log decays are mild, or everything
/// from 0 to minus infinity side by side.
template <class T>
struct DeltaInputs {
  DeltaInputs(Index length_of, Index heads_of, Index key_dim_of, Index value_dim_of, bool strong, Rng& rng)
      : length(length_of),
        heads(heads_of),
        key_dim(key_dim_of),
        value_dim(value_dim_of),
        query(numbers(length * heads * key_dim, rng)),
        key(units(rng)),
        value(numbers(length * heads * value_dim, rng)),
        log_decay(query.size()),
        beta(std::size_t(length * heads)),
        a(units(rng)),
        b(a.size()),
        memory(numbers(heads * key_dim * value_dim, rng)),
        key_sum(std::size_t(heads * key_dim), T(20)) {
    constexpr double strengths[] = {0, -1e-7, -0.01, -0.7, -3, -40, -500, -infinity};
    for (T& g : log_decay) g = T(strong ? strengths[rng.integer(0, 7)] : -rng.uniform(0, 0.3));
    for (T& x : beta) x = T(rng.uniform(0, 2));
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = -a[i] * T(rng.uniform(0, 1));
  }

  std::vector<T> numbers(Index count, Rng& rng) const {
    std::vector<T> result(static_cast<std::size_t>(count));
    for (T& x : result) x = T(rng.normal());
    return result;
  }
  std::vector<T> units(Rng& rng) const {
    std::vector<T> result = numbers(length * heads * key_dim, rng);
    for (Index row = 0; row < length * heads; ++row) {
      double square = 0;
      for (Index i = 0; i < key_dim; ++i) square += std::pow(double(result[std::size_t(row * key_dim + i)]), 2);
      for (Index i = 0; i < key_dim; ++i) result[std::size_t(row * key_dim + i)] /= T(std::sqrt(square));
    }
    return result;
  }
  HeadSequence<const T> of_keys(const std::vector<T>& x) const { return {x.data(), length, heads, key_dim}; }

  Index length, heads, key_dim, value_dim;
  std::vector<T> query, key, value, log_decay, beta, a, b, memory, key_sum;
};

template <class T, class Policy>
Policy decay_of(const DeltaInputs<T>& in) {
  if constexpr (std::same_as<Policy, decay::PerTokenChannel<T>>) return {in.of_keys(in.log_decay)};
  if constexpr (std::same_as<Policy, decay::PerToken<T>>) return {{in.log_decay.data(), in.length, in.heads}};
  if constexpr (std::same_as<Policy, decay::PerHead<T>>) return {{in.log_decay.data(), in.heads}};
  if constexpr (std::same_as<Policy, decay::None<T>>) return {};
}

/// The log decay of key channel i.
template <class T, class Policy>
double log_decay_at(const DeltaInputs<T>& in, Index t, Index h, Index i) {
  if constexpr (std::same_as<Policy, decay::PerTokenChannel<T>>) return in.of_keys(in.log_decay)(t, h, i);
  if constexpr (std::same_as<Policy, decay::PerToken<T>>) return in.log_decay[std::size_t(t * in.heads + h)];
  if constexpr (std::same_as<Policy, decay::PerHead<T>>) return in.log_decay[std::size_t(h)];
  return 0;
}

struct Result {
  std::vector<double> output, memory;
};

template <class T, class Decay, class Normalizer, class Delta>
Result expected_result(const DeltaInputs<T>& in, double scale) {
  Result result{std::vector<double>(in.value.size()), std::vector<double>(in.memory.begin(), in.memory.end())};
  const auto row = [&](const std::vector<T>& x, Index t, Index h) {
    return &x[std::size_t((t * in.heads + h) * in.key_dim)];
  };
  for (Index h = 0; h < in.heads; ++h) {
    double* S = &result.memory[std::size_t(h * in.key_dim * in.value_dim)];
    std::vector<double> z(in.key_sum.begin() + h * in.key_dim, in.key_sum.begin() + (h + 1) * in.key_dim);
    for (Index t = 0; t < in.length; ++t) {
      const T *k = row(in.key, t, h), *q = row(in.query, t, h);
      double denominator = 1;
      if constexpr (Normalizer::any) {
        denominator = 1e-3;
        for (Index i = 0; i < in.key_dim; ++i) {
          z[std::size_t(i)] = std::exp(log_decay_at<T, Decay>(in, t, h, i)) * z[std::size_t(i)] + k[i];
          denominator += scale * q[i] * z[std::size_t(i)];
        }
      }
      for (Index j = 0; j < in.value_dim; ++j) {
        const double v = in.value[std::size_t((t * in.heads + h) * in.value_dim + j)];
        double removed = 0;
        for (Index i = 0; i < in.key_dim; ++i) {
          if (Delta::low_rank) removed += row(in.a, t, h)[i] * S[i * in.value_dim + j];
          S[i * in.value_dim + j] *= std::exp(log_decay_at<T, Decay>(in, t, h, i));
          if (!Delta::low_rank) removed += k[i] * S[i * in.value_dim + j];
        }
        double y = 0;
        for (Index i = 0; i < in.key_dim; ++i) {
          S[i * in.value_dim + j] += Delta::low_rank ? row(in.b, t, h)[i] * removed + k[i] * v
                                                     : k[i] * in.beta[std::size_t(t * in.heads + h)] * (v - removed);
          y += scale * q[i] * S[i * in.value_dim + j];
        }
        result.output[std::size_t((t * in.heads + h) * in.value_dim + j)] = y / denominator;
      }
    }
  }
  return result;
}

template <class T>
double largest_difference(const std::vector<double>& expected, const std::vector<T>& given) {
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double d = std::abs(expected[i] - double(given[i]));
    difference = d <= difference ? difference : d;  // NaN stays
    largest = std::max(largest, std::abs(expected[i]));
  }
  return difference / largest;
}

template <class T, class Decay, class Normalizer, class Delta>
void check_orders() {
  Rng rng(7);
  const T scale = T(0.4);
  for (const bool strong : {false, true}) {
    for (const Index length : {1, 3, 7, 8, 12, 23, 61}) {
      for (const auto& [key_dim, value_dim] : {std::pair<Index, Index>{5, 3}, {21, 19}, {64, 33}}) {
        DeltaInputs<T> in(length, 3, key_dim, value_dim, strong, rng);
        if constexpr (Normalizer::any) {
          // A denominator that is a sum of numbers of both signs could be anything.
          for (T& x : in.query) x = std::abs(x);
          for (T& x : in.key) x = std::abs(x);
        }
        const Result expected = expected_result<T, Decay, Normalizer, Delta>(in, double(scale));
        for (const Order order : {Order::in_place, Order::fused, Order::chunked, Order::dispatched}) {
          std::vector<T> memory = in.memory, key_sum = in.key_sum, output(in.value.size());
          LinearRecurrenceProblem<T, Decay, readout::AfterUpdate<T>, Normalizer, Delta> problem{
              in.of_keys(in.query),
              in.of_keys(in.key),
              {in.value.data(), length, in.heads, value_dim},
              decay_of<T, Decay>(in),
              {},
              {},
              scale,
              {memory.data(), in.heads, key_dim, value_dim},
              {output.data(), length, in.heads, value_dim}};
          if constexpr (Normalizer::any) problem.normalizer = {{key_sum.data(), in.heads, key_dim}, T(1e-3)};
          if constexpr (Delta::low_rank) {
            problem.delta = {in.of_keys(in.a), in.of_keys(in.b)};
          } else {
            problem.delta = {{in.beta.data(), length, in.heads}};
          }
          const auto executor = backward_executor(order == Order::chunked ? 3 : 1);
          Workspace workspace(*executor);
          if (order == Order::in_place) linear_recurrence_in_place(problem, workspace);
          if (order == Order::fused) linear_recurrence_panels<RecurrenceOrder::fused>(problem, workspace);
          if (order == Order::chunked) linear_recurrence_panels<RecurrenceOrder::chunked>(problem, workspace);
          if (order == Order::dispatched) linear_recurrence(problem, workspace);
          INFO("strong " << strong << ", length " << length << ", key_dim " << key_dim << ", value_dim " << value_dim
                         << ", order " << int(order));
          const double tolerance = std::same_as<T, float> ? 4e-6 : 1e-14;
          CHECK(largest_difference(expected.output, output) <= tolerance);
          CHECK(largest_difference(expected.memory, memory) <= tolerance);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("linear recurrence, the delta rule in every order", "[linear_recurrence]", float, double) {
  using T = TestType;
  SECTION("no decay") { check_orders<T, decay::None<T>, normalizer::None<T>, delta::Rule<T>>(); }
  SECTION("decay per token") { check_orders<T, decay::PerToken<T>, normalizer::None<T>, delta::Rule<T>>(); }
}

TEST_CASE("linear recurrence, other decays with the delta rule", "[linear_recurrence]") {
  SECTION("per head") { check_orders<float, decay::PerHead<float>, normalizer::None<float>, delta::Rule<float>>(); }
  SECTION("per token and channel") {
    check_orders<float, decay::PerTokenChannel<float>, normalizer::None<float>, delta::Rule<float>>();
  }
  SECTION("a normalizer") { check_orders<float, decay::None<float>, normalizer::KeySum<float>, delta::Rule<float>>(); }
}

TEST_CASE("linear recurrence, low-rank removal in every order", "[linear_recurrence]") {
  SECTION("per token and channel, float") {
    check_orders<float, decay::PerTokenChannel<float>, normalizer::None<float>, delta::LowRank<float>>();
  }
  SECTION("per token and channel, double") {
    check_orders<double, decay::PerTokenChannel<double>, normalizer::None<double>, delta::LowRank<double>>();
  }
  SECTION("per token") {
    check_orders<float, decay::PerToken<float>, normalizer::None<float>, delta::LowRank<float>>();
  }
}

}  // namespace
}  // namespace seqmix::test
