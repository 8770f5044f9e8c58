// Inputs of benchmarks, and the plain double computations that their results are checked against.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/view.hpp>
#include <string>
#include <vector>

#include "support/benchmark.hpp"

namespace seqmix::bench {

/// An owned sequence of heads [length, heads, head_dim], all zeros.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Index length, Index heads, Index head_dim)
      : numbers_(static_cast<std::size_t>(length * heads * head_dim)),
        length_(length),
        heads_(heads),
        head_dim_(head_dim) {}

  /// Numbers uniform in [low, high).
  Tensor(Index length, Index heads, Index head_dim, double low, double high, Rng& rng)
      : Tensor(length, heads, head_dim) {
    for (float& number : numbers_) number = float(rng.uniform(low, high));
  }

  HeadSequence<float> view() { return {numbers_.data(), length_, heads_, head_dim_}; }
  HeadSequence<const float> view() const { return {numbers_.data(), length_, heads_, head_dim_}; }
  Sequence<float> flat() { return view().flat(); }
  Sequence<const float> flat() const { return view().flat(); }
  Buffer<float>& numbers() { return numbers_; }

 private:
  Buffer<float> numbers_;
  Index length_ = 0, heads_ = 0, head_dim_ = 0;
};

/// Largest difference between two tensors so far, relative to the largest number expected.
class Comparison {
 public:
  /// Adds `count` numbers. What isn't a number differs from everything.
  template <class Expected>
  void add(const float* given, const Expected* expected, Index count) {
    for (Index i = 0; i < count; ++i) {
      const double difference = std::abs(double(given[i]) - double(expected[i]));
      difference_ = difference <= difference_ ? difference_ : std::isnan(difference) ? infinity : difference;
      largest_ = std::max(largest_, std::abs(double(expected[i])));
    }
  }

  /// Throws WrongResult if the difference exceeds `tolerance` times the largest number.
  void expect_within(double tolerance, const std::string& what) const {
    if (!(difference_ <= tolerance * largest_) || !(largest_ > 0)) {
      throw WrongResult("wrong result: " + what + " differs by " + std::to_string(difference_ / largest_) +
                        " of its largest number");
    }
  }

 private:
  static constexpr double infinity = std::numeric_limits<double>::infinity();
  double difference_ = 0, largest_ = 0;
};

/// Throws WrongResult unless all numbers are finite.
inline void expect_finite(Sequence<const float> y, const std::string& what) {
  for (Index t = 0; t < y.length(); ++t) {
    for (Index c = 0; c < y.channels(); ++c) {
      if (!std::isfinite(y(t, c))) throw WrongResult("wrong result: " + what + " is not finite");
    }
  }
}

/// Rows to look at where looking at all would take too long: the first, the last, and some between.
inline std::vector<Index> sampled_rows(Index length) {
  std::vector<Index> rows;
  for (const double at : {0.0, 0.001, 0.13, 0.37, 0.5, 0.77, 1.0}) {
    const Index row = Index(at * double(length - 1));
    if (rows.empty() || row != rows.back()) rows.push_back(row);
  }
  return rows;
}

/// Softmax attention of one query row: the weighted mean of the values of all keys j < keys with visible(j). All zeros
/// if there is none.
template <class Visible>
std::vector<double> reference_attention(const float* query, Sequence<const float> key, Sequence<const float> value,
                                        double scale, const Visible& visible) {
  std::vector<double> score(static_cast<std::size_t>(key.length()), -std::numeric_limits<double>::infinity());
  double most = -std::numeric_limits<double>::infinity();
  for (Index j = 0; j < key.length(); ++j) {
    if (!visible(j)) continue;
    double sum = 0;
    for (Index d = 0; d < key.channels(); ++d) sum += double(query[d]) * double(key(j, d));
    score[std::size_t(j)] = sum * scale;
    most = std::max(most, sum * scale);
  }
  std::vector<double> mixed(static_cast<std::size_t>(value.channels()));
  double total = 0;
  for (Index j = 0; j < key.length(); ++j) {
    if (std::isinf(score[std::size_t(j)])) continue;
    const double weight = std::exp(score[std::size_t(j)] - most);
    total += weight;
    for (Index d = 0; d < value.channels(); ++d) mixed[std::size_t(d)] += weight * double(value(j, d));
  }
  for (double& number : mixed) number = total > 0 ? number / total : 0;
  return mixed;
}

/// The memory S [key_dim, value_dim] of one head of a linear recurrence, at first 0, in double.
class ReferenceMemory {
 public:
  ReferenceMemory(Index key_dim, Index value_dim)
      : key_dim_(key_dim), value_dim_(value_dim), numbers_(static_cast<std::size_t>(key_dim * value_dim)) {}

  /// scale * query^T S.
  std::vector<double> read(const float* query, double scale) const {
    std::vector<double> result(static_cast<std::size_t>(value_dim_));
    for (Index i = 0; i < key_dim_; ++i) {
      const double weight = scale * double(query[i]);
      const double* const row = numbers_.data() + i * value_dim_;
      for (Index j = 0; j < value_dim_; ++j) result[std::size_t(j)] += weight * row[j];
    }
    return result;
  }

  /// Multiplies row i by factor(i).
  template <class FactorOf>
  void fade(const FactorOf& factor) {
    for (Index i = 0; i < key_dim_; ++i) {
      const double f = factor(i);
      for (Index j = 0; j < value_dim_; ++j) numbers_[std::size_t(i * value_dim_ + j)] *= f;
    }
  }

  /// S += key value^T.
  void add(const float* key, const std::vector<double>& value) {
    for (Index i = 0; i < key_dim_; ++i) {
      const double k = double(key[i]);
      for (Index j = 0; j < value_dim_; ++j) numbers_[std::size_t(i * value_dim_ + j)] += k * value[std::size_t(j)];
    }
  }

  const std::vector<double>& numbers() const { return numbers_; }

 private:
  Index key_dim_, value_dim_;
  std::vector<double> numbers_;  // [key_dim, value_dim]
};

/// Writes the products of all pairs of x[0 .. count), in the order of parts/symmetric_products.hpp: square * x_i^2, then
/// mixed * x_i x_j. Returns the end of what is written.
inline float* pair_products(const float* x, Index count, float square, float mixed, float* to) {
  for (Index lag = 0; lag <= count / 2; ++lag) {
    for (Index i = 0; i < (2 * lag == count ? lag : count); ++i) {
      *to++ = (lag == 0 ? square : mixed) * x[i] * x[(i + lag) % count];
    }
  }
  return to;
}

}  // namespace seqmix::bench
