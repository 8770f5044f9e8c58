// The log-linear recurrence engine against its two definitions: the sum over all earlier tokens, and memories that are merged
// token by token.
//
// Bounds. A term of an output is a product of K numbers each way, of a level scale and of decays. With u half the machine
// epsilon, a decay exp(g) has an error of (2 |g| + 4) u of itself, multiplications included, and a sum of n terms one of
// n u; so a term that n tokens lie after is off by at most (K + 16 + 5 n + 2 |sum of g|) u of the sum of its absolute values.
// Factors below the smallest normal number may become 0.
#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/log_linear_attention.hpp>
#include <string>
#include <vector>

#include "support/executors.hpp"
#include "support/laws.hpp"

namespace seqmix::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Sizes {
  Index length = 1, heads = 1, key_dim = 1, value_dim = 1, shared_heads = 1;
};

/// All inputs, and a run over some of the tokens.
template <class T>
struct Inputs {
  Inputs(const Sizes& of, Index of_levels, Rng& rng)
      : sizes(of), levels(of_levels), rows(of.length, width()), y(of.length, of.heads * of.value_dim) {
    for (Index i = 0; i < rows.size(); ++i) rows.data()[i] = T(rng.normal());
    constexpr double decays[] = {0, -1e-7, -0.01, -0.01, -0.01, -0.3, -0.7, -40, -500, -infinity};
    for (Index t = 0; t < sizes.length; ++t) {
      for (Index h = 0; h < sizes.shared_heads; ++h) log_decay(t, h) = T(decays[rng.integer(0, 9)]);
    }
    y.setConstant(std::numeric_limits<T>::quiet_NaN());
  }

  Index keys() const { return sizes.shared_heads * sizes.key_dim; }
  Index values() const { return sizes.heads * sizes.value_dim; }
  Index width() const { return 2 * keys() + values() + sizes.shared_heads + sizes.heads * levels; }
  T& log_decay(Index t, Index h) { return rows(t, 2 * keys() + values() + h); }
  T& level_scale(Index t, Index h, Index level) {
    return rows(t, 2 * keys() + values() + sizes.shared_heads + h * levels + level);
  }

  LogLinearState<T> empty() const {
    return LogLinearState<T>(sizes.length, sizes.heads, sizes.key_dim, sizes.value_dim);
  }

  void run(Index begin, Index count, LogLinearState<T>& state, Workspace& workspace) {
    const auto some = ConstSequence<T>(rows).rows(begin, count);
    const Index shared = sizes.shared_heads, k = keys(), v = values();
    workspace.poison();
    log_linear_attention<T>(some.columns(0, k).heads(shared), some.columns(k, k).heads(shared),
                            some.columns(2 * k, v).heads(sizes.heads), some.columns(2 * k + v, shared),
                            some.columns(2 * k + v + shared, sizes.heads * levels).heads(sizes.heads), T(0.5), state,
                            Sequence<T>(y).rows(begin, count).heads(sizes.heads), workspace);
  }

  Sizes sizes;
  Index levels;
  Matrix<T> rows, y;  // rows [query | key | value | log decay | level scales]
};

/// Compares with the sum over all earlier tokens. Returns what is wrong with the worst element, or nothing.
template <class T>
std::string compare(Inputs<T>& inputs) {
  const Sizes& s = inputs.sizes;
  const double u = double(std::numeric_limits<T>::epsilon()) / 2;
  double worst = 1;
  std::string message;
  for (Index h = 0; h < s.heads; ++h) {
    const Index shared = h / (s.heads / s.shared_heads), q = shared * s.key_dim, k = inputs.keys() + q;
    const Index v = 2 * inputs.keys() + h * s.value_dim;
    for (Index t = 0; t < s.length; ++t) {
      std::vector<double> value(std::size_t(s.value_dim)), error(value);
      double sum_of_g = 0;
      for (Index before = t; before >= 0; --before) {
        const Index level = std::bit_width(std::uint64_t(t ^ before));
        const double scale = 0.5 * double(inputs.level_scale(t, h, level)) * std::exp(sum_of_g);
        double product = 0, size = 0;
        for (Index i = 0; i < s.key_dim; ++i) {
          const double one = double(inputs.rows(t, q + i)) * double(inputs.rows(before, k + i));
          product += one, size += std::abs(one);
        }
        const double relative = (double(s.key_dim) + 16 + 5 * double(t - before + 1) - 2 * sum_of_g) * u;
        for (std::size_t j = 0; scale != 0 && j < value.size(); ++j) {
          const double x = double(inputs.rows(before, v + Index(j)));
          value[j] += scale * product * x;
          error[j] += std::abs(scale * x) * size * relative;
        }
        sum_of_g += double(inputs.log_decay(before, shared));
      }
      for (std::size_t j = 0; j < value.size(); ++j) {
        const double given = double(inputs.y(t, h * s.value_dim + Index(j)));
        const double excess =
            std::abs(given - value[j]) / (error[j] + 4096 * double(t + 1) * double(std::numeric_limits<T>::min()));
        if (excess <= worst) continue;
        worst = excess;
        message = "row " + std::to_string(t) + ", head " + std::to_string(h) + ", channel " + std::to_string(j) + ": " +
                  std::to_string(given) + ", expected " + std::to_string(value[j]) + ", " + std::to_string(excess) +
                  " times what is allowed";
      }
    }
  }
  return message;
}

TEMPLATE_TEST_CASE("log-linear recurrence, any length in any pieces", "[log_linear]", float, double) {
  using T = TestType;
  Rng rng(test_seed);
  Workspace workspace;
  const Sizes shapes[] = {{1, 1, 1, 1, 1},    {63, 2, 3, 5, 1},   {64, 1, 8, 16, 1},    {65, 3, 17, 33, 3},
                          {127, 1, 5, 40, 1}, {130, 4, 2, 64, 2}, {200, 1, 64, 100, 1}, {257, 2, 1, 7, 2}};
  for (const Sizes& sizes : shapes) {
    Inputs<T> inputs(sizes, LogLinearState<T>::levels_for(sizes.length) + 1, rng);
    for (int repeat = 0; repeat < 8; ++repeat) {
      auto state = inputs.empty();
      std::string cuts;
      for (Index begin = 0; begin < sizes.length;) {
        const Index longest = repeat == 0 ? sizes.length : repeat == 1 ? 1 : rng.integer(1, 90);
        const Index count = std::min(longest, sizes.length - begin);
        inputs.run(begin, count, state, workspace);
        begin += count;
        cuts += " " + std::to_string(begin);
      }
      INFO("length " << sizes.length << ", key_dim " << sizes.key_dim << ", value_dim " << sizes.value_dim << ", cuts"
                     << cuts);
      const std::string difference = compare(inputs);
      if (!difference.empty()) FAIL_CHECK(difference);
      CHECK(state.position == sizes.length);
      inputs.y.setConstant(std::numeric_limits<T>::quiet_NaN());
    }
  }
}

TEST_CASE("log-linear recurrence, memories merged token by token over 100,000 tokens", "[log_linear]") {
  const Index length = test_effort() == Effort::full ? 100'003 : 9'003, key_dim = 3, value_dim = 2;
  Rng rng(test_seed);
  const Index levels = LogLinearState<float>::levels_for(length) + 1;
  Inputs<float> inputs({length, 1, key_dim, value_dim, 1}, levels, rng);
  for (Index t = 0; t < length; ++t)
    inputs.log_decay(t, 0) = float(-std::exp(rng.uniform(std::log(1e-6), std::log(0.1))));
  auto state = inputs.empty();
  Workspace workspace;
  for (Index begin = 0; begin < length;) {
    const Index count = std::min(rng.integer(0, 1) == 0 ? rng.integer(1, 7) : rng.integer(1, 3000), length - begin);
    inputs.run(begin, count, state, workspace);
    begin += count;
  }
  std::vector<Matrix<double>> memories(std::size_t(levels), Matrix<double>::Zero(key_dim, value_dim));
  double largest = 0, early = 0, late = 0;
  for (Index t = 0; t < length; ++t) {
    const auto row = inputs.rows.row(t).cast<double>();
    for (auto& memory : memories) memory *= std::exp(double(inputs.log_decay(t, 0)));
    if (t > 0) {
      const auto merged = std::size_t(std::countr_zero(std::uint64_t(t)));
      for (std::size_t level = 0; level <= merged; ++level) {
        memories[merged + 1] += memories[level];
        memories[level].setZero();
      }
    }
    memories[0] = row.segment(key_dim, key_dim).transpose() * row.segment(2 * key_dim, value_dim);
    for (Index j = 0; j < value_dim; ++j) {
      double expected = 0;
      for (Index level = 0; level < levels; ++level) {
        for (Index i = 0; i < key_dim; ++i) {
          expected += 0.5 * double(inputs.level_scale(t, 0, level)) * row[i] * memories[std::size_t(level)](i, j);
        }
      }
      const double error = std::abs(double(inputs.y(t, j)) - expected);
      largest = std::max(largest, std::abs(expected));
      double& worst = t < length / 10 ? early : late;
      worst = std::max(worst, error);
    }
  }
  INFO("errors " << early << " and " << late << " of " << largest);
  CHECK(early > 0);
  // The memories of decays down to 1e-6 go on growing for a while.
  CHECK(late <= 8 * early);
  CHECK(late <= 1e-5 * largest);
}

TEST_CASE("log-linear recurrence, any number of threads gives the same bits", "[log_linear]") {
  Rng rng(test_seed);
  for (const Sizes& sizes : {Sizes{150, 3, 17, 70, 3}, Sizes{77, 1, 5, 100, 1}}) {
    Inputs<float> inputs(sizes, 9, rng);
    Workspace serial;
    auto expected_state = inputs.empty();
    inputs.run(0, 37, expected_state, serial);
    inputs.run(37, sizes.length - 37, expected_state, serial);
    const Matrix<float> expected = inputs.y;
    for (const auto& [name, executor] : all_executors()) {
      INFO(name);
      Workspace workspace(*executor);
      auto state = inputs.empty();
      inputs.run(0, 37, state, workspace);
      inputs.run(37, sizes.length - 37, state, workspace);
      CHECK(std::memcmp(expected.data(), inputs.y.data(), std::size_t(expected.size()) * sizeof(float)) == 0);
      CHECK(state.fade == expected_state.fade);
      CHECK(state.memory == expected_state.memory);
    }
  }
}

TEST_CASE("log-linear recurrence, NaN goes where the equations take it", "[log_linear]") {
  Rng rng(test_seed);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Sizes sizes{90, 2, 6, 40, 2};
  const Index at = 21, levels = 8;
  Inputs<float> inputs(sizes, levels, rng);
  for (Index t = 0; t < sizes.length; ++t) inputs.log_decay(t, 0) = inputs.log_decay(t, 1) = -0.01f;
  const auto spread = [&](float& place, auto reached) {
    for (const Index piece : {Index(1), Index(13), sizes.length}) {
      const float before = place;
      Workspace workspace;
      auto state = inputs.empty(), disturbed = inputs.empty();
      for (Index t = 0; t < sizes.length; t += piece)
        inputs.run(t, std::min(piece, sizes.length - t), state, workspace);
      const Matrix<float> good = inputs.y;
      place = nan;
      for (Index t = 0; t < sizes.length; t += piece) {
        inputs.run(t, std::min(piece, sizes.length - t), disturbed, workspace);
      }
      place = before;
      Index wrong = 0;
      for (Index t = 0; t < sizes.length; ++t) {
        for (Index c = 0; c < good.cols(); ++c) {
          const bool is_reached = reached(t, c / sizes.value_dim, c % sizes.value_dim);
          wrong += is_reached ? !std::isnan(inputs.y(t, c)) : inputs.y(t, c) != good(t, c);
        }
      }
      CHECK(wrong == 0);
    }
  };
  spread(inputs.rows(at, 6 + 2), [&](Index t, Index h, Index) { return t == at && h == 1; });               // query
  spread(inputs.rows(at, 12 + 6 + 2), [&](Index t, Index h, Index) { return t >= at && h == 1; });          // key
  spread(inputs.rows(at, 24 + 3), [&](Index t, Index h, Index j) { return t >= at && h == 0 && j == 3; });  // value
  spread(inputs.log_decay(at, 1), [&](Index t, Index h, Index) { return t >= at && h == 1; });
  // 21 = 10101 in binary: token 21 has levels 0, 1, 3 and 5.
  for (const Index level : {0, 1, 3, 5}) {
    spread(inputs.level_scale(at, 0, level), [&](Index t, Index h, Index) { return t == at && h == 0; });
  }
  for (const Index level : {2, 4, 6, 7}) {
    spread(inputs.level_scale(at, 0, level), [](Index, Index, Index) { return false; });
  }
}

TEST_CASE("log-linear recurrence, a large query and a large key with a strong decay between them", "[log_linear]") {
  for (const double log_decay : {-80.0, -500.0, -infinity}) {
    Rng rng(test_seed);
    Inputs<float> inputs({80, 1, 5, 20, 1}, 8, rng);
    for (Index t = 0; t < 80; ++t) inputs.log_decay(t, 0) = float(log_decay);
    inputs.rows.middleCols(10, 20).setConstant(1e-15f);
    inputs.rows.row(33).segment(5, 5).setConstant(1e20f);
    inputs.rows.row(35).head(5).setConstant(1e20f);
    inputs.rows.row(66).segment(5, 5).setConstant(1e20f);
    inputs.rows.row(67).head(5).setConstant(1e20f);
    auto state = inputs.empty();
    Workspace workspace;
    inputs.run(0, 80, state, workspace);
    INFO("log decay " << log_decay);
    CHECK(inputs.y.allFinite());
    CHECK(compare(inputs) == "");
  }
}

TEST_CASE("log-linear recurrence, a state has room for so many tokens", "[log_linear]") {
  Rng rng(test_seed);
  Inputs<double> inputs({40, 2, 3, 5, 2}, 7, rng);
  Workspace workspace;
  auto roomy = inputs.empty();
  inputs.run(0, 40, roomy, workspace);
  const Matrix<double> expected = inputs.y;

  LogLinearState<double> state(15, 2, 3, 5);
  CHECK(state.levels() == 4);
  CHECK(state.capacity() == 15);
  inputs.run(0, 11, state, workspace);
  const auto before = state;
  inputs.y.setZero();
  CHECK_THROWS_AS(inputs.run(11, 5, state, workspace), std::invalid_argument);
  CHECK(inputs.y == Matrix<double>::Zero(40, 10));
  CHECK(state.memory == before.memory);
  CHECK(state.position == 11);
  inputs.run(11, 4, state, workspace);
  CHECK_THROWS_AS(inputs.run(15, 1, state, workspace), std::invalid_argument);
  state.reserve(16);
  CHECK(state.capacity() == 31);
  inputs.run(15, 16, state, workspace);
  state.reserve(20);
  CHECK(state.capacity() == 31);
  state.reserve(1'000'000);
  CHECK(state.levels() == 20);
  inputs.run(31, 9, state, workspace);
  CHECK((inputs.y.bottomRows(29) - expected.bottomRows(29)).cwiseAbs().maxCoeff() <=
        1e-12 * expected.cwiseAbs().maxCoeff());
}

TEST_CASE("log-linear attention, arguments that don't fit are refused", "[log_linear]") {
  Rng rng(test_seed);
  Workspace workspace;
  const auto refusal = [&](Index levels, LogLinearState<float> state) {
    Inputs<float> inputs({20, 2, 3, 5, 1}, levels, rng);
    try {
      inputs.run(0, 20, state, workspace);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(refusal(6, {20, 2, 3, 5}) == "");
  CHECK(refusal(5, {20, 2, 3, 5}).starts_with("log_linear_attention: level_scales: "));  // token 19 has level 5
  CHECK(refusal(6, {15, 2, 3, 5}).starts_with("log_linear_attention: state: "));
  CHECK(refusal(6, {20, 1, 3, 5}).starts_with("log_linear_attention: state.memory: "));
  CHECK(refusal(6, {20, 2, 4, 5}).starts_with("log_linear_attention: state.memory: "));
  CHECK(refusal(6, {20, 2, 3, 6}).starts_with("log_linear_attention: state.memory: "));
  CHECK(refusal(6, {}).starts_with("log_linear_attention: state.memory: "));
}

}  // namespace
}  // namespace seqmix::test
