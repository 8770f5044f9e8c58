// Cores with a log decay and a beta, where these are as extreme as may be: log decays from -infinity and -500 to -1e-7
// next to each other, beta from 0 to 2 with unit keys. Compared with a token loop in double.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/delta_rule.hpp>
#include <seqmix/linear/gated_delta_rule.hpp>
#include <seqmix/linear/gated_linear_attention.hpp>
#include <seqmix/linear/kimi_delta_attention.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>
#include <seqmix/parts/lower_bounded_gate.hpp>
#include <seqmix/recurrent/hgrn2.hpp>
#include <vector>

namespace seqmix::test {
namespace {

enum class Core { delta_rule, gated_delta_rule, kimi_delta_attention, simple_gla, gla, hgrn2 };

constexpr Index heads = 4, key_heads = 2, key_dim = 11, value_dim = 21;

/// Streams of a core, rows [query | key | value | log decay of heads | log decay of channels | beta].
template <class T>
struct Streams {
  Streams(Index length, Rng& rng) : rows(length, width) {
    for (Index t = 0; t < length; ++t) {
      for (Index c = 0; c < width; ++c) rows(t, c) = T(rng.normal());
      for (Index h = 0; h < key_heads; ++h) {
        auto key = rows.row(t).segment(key_begin + h * key_dim, key_dim);
        key /= key.norm();
      }
      for (Index c = decay_begin; c < beta_begin; ++c) rows(t, c) = T(log_decay(rng));
      for (Index c = beta_begin; c < width; ++c) rows(t, c) = T(beta(rng));
    }
  }

  static double log_decay(Rng& rng) {
    switch (rng.integer(0, 5)) {
      case 0:
        return rng.integer(0, 7) == 0 ? -std::numeric_limits<double>::infinity() : -1;
      case 1:
        return rng.integer(0, 3) == 0 ? -500 : -1e-3;
      case 2:
        return rng.uniform(-110, -80);  // around the least float
      default:
        return -std::exp(rng.uniform(std::log(1e-7), 0));
    }
  }
  static double beta(Rng& rng) {
    const Index which = rng.integer(0, 3);
    return which == 0 ? 0 : which == 1 ? 2 : rng.uniform(0, 2);
  }

  static constexpr Index key_begin = key_heads * key_dim, value_begin = 2 * key_begin;
  static constexpr Index decay_begin = value_begin + heads * value_dim, channel_begin = decay_begin + heads;
  static constexpr Index beta_begin = channel_begin + heads * key_dim, width = beta_begin + heads;
  Matrix<T> rows;
};

/// Rows begin .. begin + count - 1 through a core.
template <class T>
void run(Core core, const Streams<T>& streams, Index begin, Index count, MemoryView<T> memory, Matrix<T>& y) {
  using S = Streams<T>;
  Workspace workspace;
  const auto rows = ConstSequence<T>(streams.rows).rows(begin, count);
  const auto q = rows.columns(0, S::key_begin).heads(key_heads);
  const auto k = rows.columns(S::key_begin, S::key_begin).heads(key_heads);
  const auto v = rows.columns(S::value_begin, heads * value_dim).heads(heads);
  const auto g = rows.columns(S::decay_begin, heads), beta = rows.columns(S::beta_begin, heads);
  const auto channels = rows.columns(S::channel_begin, heads * key_dim).heads(heads);
  const auto output = Sequence<T>(y).rows(begin, count).heads(heads);
  switch (core) {
    case Core::delta_rule:
      return delta_rule<T>(q, k, v, beta, T(0.5), QueryKeyNorm::none, memory, output, workspace);
    case Core::gated_delta_rule:
      return gated_delta_rule<T>(q, k, v, g, beta, T(0.5), QueryKeyNorm::none, memory, output, workspace);
    case Core::kimi_delta_attention:
      return kimi_delta_attention<T>(q, k, v, channels, beta, T(0.5), QueryKeyNorm::none, memory, output, workspace);
    case Core::simple_gla:
      return simple_gated_linear_attention<T>(q, k, v, g, T(0.5), memory, output, workspace);
    case Core::gla:
      return gated_linear_attention<T>(q, k, v, channels, T(0.5), memory, output, workspace);
    case Core::hgrn2:
      return hgrn2<T>(q, channels, v, T(0.5), memory, output, workspace);
  }
}

/// The token loop, y [length, heads * value_dim] and the memory [heads * key_dim, value_dim].
template <class T>
void loop(Core core, const Streams<T>& streams, Matrix<double>& memory, Matrix<double>& y) {
  using S = Streams<T>;
  const bool scalar = core == Core::gated_delta_rule || core == Core::simple_gla;
  const bool removes = core == Core::delta_rule || core == Core::gated_delta_rule || core == Core::kimi_delta_attention;
  memory = Matrix<double>::Zero(heads * key_dim, value_dim);
  for (Index t = 0; t < streams.rows.rows(); ++t) {
    const auto row = streams.rows.row(t).template cast<double>();
    for (Index h = 0; h < heads; ++h) {
      const Index shared = h / (heads / key_heads);
      const Vector<double> q = row.segment(shared * key_dim, key_dim);
      Vector<double> k = row.segment(S::key_begin + shared * key_dim, key_dim);
      Vector<double> v = row.segment(S::value_begin + h * value_dim, value_dim);
      auto own = memory.middleRows(h * key_dim, key_dim);
      for (Index i = 0; i < key_dim && core != Core::delta_rule; ++i) {
        const double g = scalar ? row[S::decay_begin + h] : row[S::channel_begin + h * key_dim + i];
        own.row(i) *= std::exp(g);
        if (core == Core::hgrn2) k[i] = -std::expm1(g);
      }
      if (removes) v = row[S::beta_begin + h] * (v - own.transpose() * k);
      own += k * v.transpose();
      y.row(t).segment(h * value_dim, value_dim) = 0.5 * (own.transpose() * q).transpose();
    }
  }
}

template <class T>
void check(Core core, Index length, Index piece, double tolerance) {
  Rng rng(std::uint64_t(7 + length));
  const Streams<T> streams(length, rng);
  Matrix<double> memory, y(length, heads * value_dim);
  loop(core, streams, memory, y);
  Matrix<T> given(length, heads * value_dim), own = Matrix<T>::Zero(heads * key_dim, value_dim);
  for (Index begin = 0; begin < length; begin += piece) {
    run<T>(core, streams, begin, std::min(piece, length - begin), {own.data(), heads, key_dim, value_dim}, given);
  }
  INFO("core " << int(core) << ", length " << length << ", pieces of " << piece << ", " << sizeof(T) << " bytes");
  CHECK(given.allFinite());
  CHECK(own.allFinite());
  CHECK((given.template cast<double>() - y).cwiseAbs().maxCoeff() <= tolerance * y.cwiseAbs().maxCoeff());
  CHECK((own.template cast<double>() - memory).cwiseAbs().maxCoeff() <= tolerance * memory.cwiseAbs().maxCoeff());
}

TEST_CASE("extreme decays and betas give the token loop's results") {
  for (const Core core : {Core::delta_rule, Core::gated_delta_rule, Core::kimi_delta_attention, Core::simple_gla,
                          Core::gla, Core::hgrn2}) {
    for (const Index length : {Index(1), Index(9), Index(64), Index(131), Index(700)}) {
      for (const Index piece : {Index(1), Index(5), Index(29), length}) check<float>(core, length, piece, 2e-5);
    }
  }
}

template <class T>
void check_gate(double f, double bound) {
  Matrix<T> given = Matrix<T>::Constant(1, 1, T(f));
  const Vector<T> bounds = Vector<T>::Constant(1, T(bound));
  apply_lower_bounded_gate<T>(given, bounds);
  // 1 - bound is exact for the bounds of the test.
  const double exact = double(T(f)), kept = double(T(bound));
  const double forgotten = (1 - kept) / (1 + std::exp(exact));
  const double expected =
      forgotten < 0.5 ? std::log1p(-forgotten) : std::log(kept + (1 - kept) / (1 + std::exp(-exact)));
  INFO("f " << f << ", bound " << bound << ": " << given(0, 0) << ", expected " << expected);
  CHECK(std::abs(double(given(0, 0)) - expected) <= 8 * double(std::numeric_limits<T>::epsilon()) * std::abs(expected));
}

TEST_CASE("a gate with a lower bound is accurate where it keeps and where it forgets") {
  for (const double bound : {0.0, 0.25, 0.5, 0.9375, 1 - 0x1p-10}) {
    for (double f = -80; f <= 80; f += 0.37) {
      check_gate<float>(f, bound);
      check_gate<double>(f, bound);
    }
  }
}

}  // namespace
}  // namespace seqmix::test
