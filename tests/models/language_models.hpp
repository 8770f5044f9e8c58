// Running language models through every path.
#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <seqmix/core/workspace.hpp>
#include <span>
#include <utility>
#include <vector>

namespace model_tests {

using namespace seqmix;

/// max |given - expected| / max |expected|; infinity where a logit is not finite.
template <class T>
double difference(const Matrix<T>& given, const Matrix<double>& expected) {
  REQUIRE(Shape(given) == Shape(expected));
  if (!given.allFinite()) return std::numeric_limits<double>::infinity();
  return (given.template cast<double>() - expected).cwiseAbs().maxCoeff() / expected.cwiseAbs().maxCoeff();
}

/// A matrix of NaN.
template <class T>
Matrix<T> poisoned(Index rows, Index columns) {
  return Matrix<T>::Constant(rows, columns, std::numeric_limits<T>::quiet_NaN());
}

/// Logits after every token, the tokens taken in pieces of the given sizes, over and over; the state after them.
template <class Model>
auto in_pieces(const Model& model, std::span<const Index> tokens, const std::vector<Index>& sizes) {
  using T = typename Model::Scalar;
  Workspace workspace;
  auto state = model.initial_state();
  Matrix<T> logits = poisoned<T>(Index(tokens.size()), model.vocabulary());
  Index begin = 0;
  for (std::size_t piece = 0; begin < logits.rows(); ++piece) {
    const Index count = std::min(sizes[piece % sizes.size()], logits.rows() - begin);
    workspace.poison();
    model.prefill(state, tokens.subspan(std::size_t(begin), std::size_t(count)), Sequence<T>(logits).rows(begin, count),
                  workspace);
    begin += count;
  }
  return std::pair(std::move(logits), std::move(state));
}

template <class Model>
auto step_by_step(const Model& model, std::span<const Index> tokens) {
  using T = typename Model::Scalar;
  Workspace workspace;
  auto state = model.initial_state();
  Matrix<T> logits = poisoned<T>(Index(tokens.size()), model.vocabulary());
  for (Index t = 0; t < logits.rows(); ++t) {
    workspace.poison();
    model.step(state, tokens[std::size_t(t)], Sequence<T>(logits).token(t), workspace);
  }
  return std::pair(std::move(logits), std::move(state));
}

}  // namespace model_tests
