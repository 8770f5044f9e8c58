// Errors over long sequences, one head of 64 x 64 in float: after 100,000 tokens, or 1,000,000 on request
// (operators_tests "[.slow]"), they are no more than three times those after 10,000. Compared with a token loop in double.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/based.hpp>
#include <seqmix/linear/delta_rule.hpp>
#include <seqmix/linear/gated_delta_rule.hpp>
#include <seqmix/linear/gated_linear_attention.hpp>
#include <seqmix/linear/linear_attention.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>
#include <seqmix/recurrent/retention.hpp>
#include <seqmix/recurrent/rwkv6.hpp>
#include <seqmix/recurrent/rwkv7.hpp>
#include <vector>

namespace seqmix::test {
namespace {

constexpr Index dim = 64, block = 1000, early_length = 10000;
const float head_log_decay = std::log1p(-0x1p-5f), weak_head_log_decay = -1e-7f, normalizer_epsilon = 1e-6f;

/// Whether all tokens have the same key and value, or each its own. Queries are always random.
enum class Keys { constant, random };

/// A block of tokens, [block, dim] each.
struct Tokens {
  explicit Tokens(Keys kind) : keys(kind), numbers(1 << 16) {
    for (float& x : numbers) x = float(rng.normal());
    key = value = query = log_decay = removal = Matrix<float>(block, dim);
    weak_log_decay = Matrix<float>::Zero(block, dim);
    for (Index i = 0; i < dim; i += 2) weak_log_decay.col(i).setConstant(weak_head_log_decay);
    beta.resize(block, 1);
    key.row(0) = row(), value.row(0) = row(), bonus = row();
  }

  /// A row of normal numbers, from those drawn in the beginning: drawing each anew would take longer than all else.
  Vector<float> row() {
    return Eigen::Map<Vector<float>>(&numbers[std::size_t(rng.integer(0, Index(numbers.size()) - dim))], dim);
  }

  void next(bool unit_keys) {
    for (Index t = 0; t < block; ++t) {
      query.row(t) = row();
      key.row(t) = keys == Keys::constant ? Vector<float>(key.row(0)) : row();
      value.row(t) = keys == Keys::constant ? Vector<float>(value.row(0)) : row();
      if (unit_keys) key.row(t).normalize();
      for (Index i = 0; i < dim; ++i) log_decay(t, i) = float(-std::exp(rng.uniform(std::log(1e-3), 0)));
      beta(t, 0) = float(rng.uniform());
      removal.row(t) = -beta(t, 0) * key.row(t);
    }
  }

  static ConstHeadSequence<float> rows(const Matrix<float>& stream, Index begin, Index count) {
    return ConstSequence<float>(stream).rows(begin, count).heads(1);
  }

  Keys keys;
  Rng rng{7};
  std::vector<float> numbers;
  Matrix<float> query, key, value, log_decay, weak_log_decay, removal, beta;
  Vector<float> bonus;
};

/// A core function and its equations, as policies of the token loop.
struct Core {
  const char* name;
  void (*run)(const Tokens& tokens, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
              Workspace& workspace);
  enum Decay { undecayed, constant, by_token, by_channel, weak, weak_by_channel } decay = undecayed;
  enum Removal { nothing, delta_rule, low_rank } removal = nothing;
  bool elu1 = false, normalized = false, bonus = false, unit_keys = false;
  float rate = 1;  // of the delta rule: factor of beta
  bool based = false;
  Index key_dim = dim;  // of the state
};

/// Width of queries and keys of Based here: the first channels of both.
constexpr Index based_width = 8;

/// 1, x and x x^T / sqrt(2): products of these are 1 + s + s^2 / 2 with s = x . y.
Vector<double> taylor_features(const Vector<double>& x) {
  Vector<double> result(1 + x.size() + x.size() * x.size());
  const Matrix<double> squares = x.transpose() * x / std::sqrt(2.0);
  result << 1.0, x, Eigen::Map<const Vector<double>>(squares.data(), squares.size());
  return result;
}

/// The equations, a token at a time.
class Loop {
 public:
  explicit Loop(const Core& core) : core_(core) {
    if (core.based) key_sum_ = taylor_features(Vector<double>::Zero(based_width)) * 0;
    memory_ = Matrix<double>::Zero(key_sum_.size(), dim);
  }

  /// Adds token t. Its output where `read`.
  Vector<double> token(const Tokens& tokens, Index t, bool read) {
    const auto row = [&](const Matrix<float>& stream) -> Vector<double> { return stream.row(t).cast<double>(); };
    Vector<double> q = row(tokens.query), k = row(tokens.key), v = row(tokens.value), y = Vector<double>::Zero(dim);
    if (core_.based) {
      q = taylor_features(q.head(based_width) / std::sqrt(double(based_width)));
      k = taylor_features(k.head(based_width));
    }
    if (core_.elu1) {
      const auto map = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
      q = q.unaryExpr(map), k = k.unaryExpr(map);
    }
    if (core_.bonus && read) {
      y.noalias() = memory_.transpose() * q;
      y += q.cwiseProduct(tokens.bonus.cast<double>()).dot(k) * v;
    }
    if (core_.removal == Core::low_rank) removed_.noalias() = memory_.transpose() * row(tokens.removal);
    if (core_.decay == Core::constant) memory_ *= std::exp(double(head_log_decay));
    if (core_.decay == Core::weak) memory_ *= std::exp(double(weak_head_log_decay));
    if (core_.decay == Core::by_token) memory_ *= std::exp(double(tokens.log_decay(t, 0)));
    if (core_.decay == Core::by_channel || core_.decay == Core::weak_by_channel) {
      const bool weak = core_.decay == Core::weak_by_channel;
      const Vector<double> factors = row(weak ? tokens.weak_log_decay : tokens.log_decay).array().exp();
      for (Index i = 0; i < dim; ++i) memory_.row(i) *= factors[i];
    }
    if (core_.removal == Core::low_rank) memory_.noalias() += k * removed_.transpose();
    if (core_.removal == Core::delta_rule) {
      removed_.noalias() = memory_.transpose() * k;
      v = double(core_.rate * tokens.beta(t, 0)) * (v - removed_);
    }
    memory_.noalias() += k * v.transpose();
    key_sum_ += k;
    if (!core_.bonus && read) y.noalias() = memory_.transpose() * q;
    if (core_.normalized) y /= q.dot(key_sum_) + double(normalizer_epsilon);
    return y;
  }

 private:
  const Core& core_;
  Matrix<double> memory_;
  Vector<double> key_sum_ = Vector<double>::Zero(dim), removed_ = Vector<double>::Zero(dim);
};

/// Outputs are sums of 64 products and are rounded by that much, whatever came before.
constexpr double least_error = 4 * double(std::numeric_limits<float>::epsilon());

/// The largest error of a block's outputs over the largest of these; infinite for what is no number.
double error_of(const Matrix<float>& given, const Matrix<double>& expected) {
  if (!given.allFinite()) return std::numeric_limits<double>::infinity();
  return (given.cast<double>() - expected).cwiseAbs().maxCoeff() / expected.cwiseAbs().maxCoeff();
}

/// `length` tokens in pieces as long as `pieces`, over and over again.
void check(const Core& core, Keys keys, Index length, const std::vector<Index>& pieces = {block}) {
  Tokens tokens(keys);
  SummedMemory<float> state({1, core.key_dim, dim});
  Loop loop(core);
  Workspace workspace;
  Matrix<float> given(block, dim);
  Matrix<double> expected(block, dim);
  double early = 0, late = 0;
  std::size_t piece = 0;
  for (Index end = block; end <= length; end += block) {
    tokens.next(core.unit_keys);
    for (Index t = 0, count = 0; t < block; t += count) {
      count = std::min(pieces[piece++ % pieces.size()], block - t);
      core.run(tokens, t, count, state, Sequence<float>(given).rows(t, count).heads(1), workspace);
      state.position += count;
    }
    const bool read = end == early_length || end == length;
    for (Index t = 0; t < block; ++t) expected.row(t) = loop.token(tokens, t, read);
    if (read) (end == early_length ? early : late) = error_of(given, expected);
  }
  INFO(core.name << ", " << (keys == Keys::constant ? "constant" : "random") << " keys, pieces of " << pieces[0]
                 << " ...: error " << early << " at " << early_length << " tokens, " << late << " at " << length);
  CHECK(late <= 3 * std::max(early, least_error));
}

// --- cores ------------------------------------------------------------------------------------------------------------

template <class Map, bool normalize>
void run_linear_attention(const Tokens& x, Index begin, Index count, SummedMemory<float>& state,
                          HeadSequence<float> output, Workspace& workspace) {
  linear_attention<Map, float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count),
                               x.rows(x.value, begin, count), {.normalize = normalize, .epsilon = normalizer_epsilon},
                               state.memory, state.key_sum_view(), output, workspace, state.compensation_view());
}

// The norm of mapped keys is about 11: this makes beta |k|^2 at most about 1.
constexpr float fast_weight_rate = 0x1p-7f;

/// The delta rule with a denominator, as fast weights have it.
void run_normalized_delta_rule(const Tokens& x, Index begin, Index count, SummedMemory<float>& state,
                               HeadSequence<float> output, Workspace& workspace) {
  using Normalizer = normalizer::KeySum<float>;
  LinearRecurrenceProblem<float, decay::None<float>, readout::AfterUpdate<float>, Normalizer, delta::Rule<float>>
      problem{x.rows(x.query, begin, count),
              x.rows(x.key, begin, count),
              x.rows(x.value, begin, count),
              {},
              {},
              {state.key_sum_view(), normalizer_epsilon, state.compensation_view().key_sum},
              1.0f,
              state.memory,
              output,
              row_map<float, feature_map::Elu1>,
              row_map<float, feature_map::Elu1>};
  const Matrix<float> beta = x.beta.middleRows(begin, count) * fast_weight_rate;
  problem.delta.beta = beta;
  linear_recurrence(problem, workspace);
}

void run_based(const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
               Workspace& workspace) {
  const auto first = [&](const Matrix<float>& stream) {
    return ConstSequence<float>(stream).rows(begin, count).columns(0, based_width).heads(1);
  };
  based<float>(first(x.query), first(x.key), x.rows(x.value, begin, count), {.epsilon = normalizer_epsilon},
               state.memory, state.key_sum_view(), output, workspace, state.compensation_view());
}

const Core elu1{.name = "linear attention, elu + 1, normalised",
                .run = run_linear_attention<feature_map::Elu1, true>,
                .elu1 = true,
                .normalized = true};
const Core identity{.name = "linear attention, not normalised",
                    .run = run_linear_attention<feature_map::Identity, false>};

template <const float* log_decay>
void run_retention(const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
                   Workspace& workspace) {
  retention<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count), x.rows(x.value, begin, count),
                   ConstToken<float>(log_decay, 1), 1.0f, state.memory, output, workspace);
}

template <Matrix<float> Tokens::*log_decay>
void run_gated_linear_attention(const Tokens& x, Index begin, Index count, SummedMemory<float>& state,
                                HeadSequence<float> output, Workspace& workspace) {
  gated_linear_attention<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count),
                                x.rows(x.value, begin, count), x.rows(x.*log_decay, begin, count), 1.0f, state.memory,
                                output, workspace);
}

// In these, the state keeps a memory only.
const Core fading[] = {
    {.name = "retention", .run = run_retention<&head_log_decay>, .decay = Core::constant},
    {.name = "retention, nearly a sum", .run = run_retention<&weak_head_log_decay>, .decay = Core::weak},
    {.name = "simple gated linear attention",
     .run =
         [](const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
            Workspace& workspace) {
           simple_gated_linear_attention<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count),
                                                x.rows(x.value, begin, count),
                                                ConstSequence<float>(x.log_decay).rows(begin, count).columns(0, 1),
                                                1.0f, state.memory, output, workspace);
         },
     .decay = Core::by_token},
    {.name = "gated linear attention",
     .run = run_gated_linear_attention<&Tokens::log_decay>,
     .decay = Core::by_channel},
    {.name = "gated linear attention, nearly a sum",
     .run = run_gated_linear_attention<&Tokens::weak_log_decay>,
     .decay = Core::weak_by_channel},
    {.name = "rwkv6",
     .run =
         [](const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
            Workspace& workspace) {
           rwkv6<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count), x.rows(x.value, begin, count),
                        x.rows(x.log_decay, begin, count), ConstSequence<float>(x.bonus.data(), 1, dim), state.memory,
                        output, workspace);
         },
     .decay = Core::by_channel,
     .bonus = true},
    {.name = "delta rule",
     .run =
         [](const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
            Workspace& workspace) {
           delta_rule<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count), x.rows(x.value, begin, count),
                             ConstSequence<float>(x.beta).rows(begin, count), 1.0f, QueryKeyNorm::none, state.memory,
                             output, workspace);
         },
     .removal = Core::delta_rule,
     .unit_keys = true},
    {.name = "gated delta rule",
     .run =
         [](const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
            Workspace& workspace) {
           gated_delta_rule<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count),
                                   x.rows(x.value, begin, count),
                                   ConstSequence<float>(x.log_decay).rows(begin, count).columns(0, 1),
                                   ConstSequence<float>(x.beta).rows(begin, count), 1.0f, QueryKeyNorm::none,
                                   state.memory, output, workspace);
         },
     .decay = Core::by_token,
     .removal = Core::delta_rule,
     .unit_keys = true},
    {.name = "rwkv7",
     .run =
         [](const Tokens& x, Index begin, Index count, SummedMemory<float>& state, HeadSequence<float> output,
            Workspace& workspace) {
           rwkv7<float>(x.rows(x.query, begin, count), x.rows(x.key, begin, count), x.rows(x.value, begin, count),
                        x.rows(x.log_decay, begin, count), x.rows(x.removal, begin, count), x.rows(x.key, begin, count),
                        state.memory, output, workspace);
         },
     .decay = Core::by_channel,
     .removal = Core::low_rank,
     .unit_keys = true},
};

const std::vector<Index> mixed_pieces = {1, 1, 1, 37, 5, 400, 15, 16, 1, 8, 100, 1, 2, 333};

void check_sums(Index length) {
  for (const Keys keys : {Keys::constant, Keys::random}) {
    for (const std::vector<Index>& pieces : {std::vector<Index>{block}, std::vector<Index>{1}, mixed_pieces}) {
      check(elu1, keys, length, pieces);
    }
    check(identity, keys, length, mixed_pieces);
    check({.name = "delta rule, normalised",
           .run = run_normalized_delta_rule,
           .removal = Core::delta_rule,
           .elu1 = true,
           .normalized = true,
           .rate = fast_weight_rate},
          keys, length, mixed_pieces);
    check({.name = "based",
           .run = run_based,
           .normalized = true,
           .based = true,
           .key_dim = polynomial::Taylor::features(based_width)},
          keys, length, mixed_pieces);
  }
}

void check_fading(Index length) {
  for (const Core& core : fading) {
    for (const Keys keys : {Keys::constant, Keys::random}) check(core, keys, length);
    // A memory that is nearly a sum is rounded at the end of every piece, and at every single token.
    const bool weak = core.decay == Core::weak || core.decay == Core::weak_by_channel;
    if (!weak) check(core, Keys::random, length, mixed_pieces);
  }
}

TEST_CASE("errors of sums over all tokens do not grow with the length") { check_sums(100000); }
TEST_CASE("errors of sums over all of a million tokens", "[.slow]") { check_sums(1000000); }

TEST_CASE("errors of fading memories do not grow with the length") { check_fading(100000); }
TEST_CASE("errors of fading memories after a million tokens", "[.slow]") { check_fading(1000000); }

// --- without order ----------------------------------------------------------------------------------------------------

double bidirectional_error(Keys keys, Index length) {
  Tokens tokens(keys);
  Matrix<float> query(length, dim), key(length, dim), value(length, dim), output(length, dim);
  Matrix<double> memory = Matrix<double>::Zero(dim, dim), expected(block, dim);
  Vector<double> key_sum = Vector<double>::Zero(dim);
  const auto map = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  for (Index begin = 0; begin < length; begin += block) {
    tokens.next(false);
    query.middleRows(begin, block) = tokens.query;
    key.middleRows(begin, block) = tokens.key;
    value.middleRows(begin, block) = tokens.value;
    const Matrix<double> k = tokens.key.cast<double>().unaryExpr(map), v = tokens.value.cast<double>();
    memory.noalias() += k.transpose() * v;
    key_sum += Vector<double>(k.colwise().sum());
  }
  Workspace workspace;
  linear_attention_bidirectional<feature_map::Elu1, float>(
      ConstSequence<float>(query).heads(1), ConstSequence<float>(key).heads(1), ConstSequence<float>(value).heads(1),
      {.epsilon = normalizer_epsilon}, Sequence<float>(output).heads(1), workspace);
  for (Index t = 0; t < block; ++t) {
    const Vector<double> q = query.row(t).cast<double>().unaryExpr(map);
    expected.row(t) = (memory.transpose() * q) / (q.dot(key_sum) + double(normalizer_epsilon));
  }
  return error_of(output.topRows(block), expected);
}

void check_bidirectional(Index length) {
  for (const Keys keys : {Keys::constant, Keys::random}) {
    const double early = bidirectional_error(keys, early_length), late = bidirectional_error(keys, length);
    INFO("error " << early << " at " << early_length << " tokens, " << late << " at " << length);
    CHECK(late <= 3 * std::max(early, least_error));
  }
}

TEST_CASE("errors of linear attention to all tokens do not grow with the length") { check_bidirectional(100000); }
TEST_CASE("errors of linear attention to all of a million tokens", "[.slow]") { check_bidirectional(1000000); }

// --- the layer --------------------------------------------------------------------------------------------------------

/// A state that is copied, and written and read again, on the way.
void check_layer(Index length, bool whole) {
  using Layer = LinearAttention<float>;
  Rng rng(3);
  const Layer::Config config{.channels = dim, .heads = 1};
  const auto weights = Layer::random_weights(config, rng);
  const Layer layer(config, weights);
  const auto project = [](const Matrix<double>& x, const Matrix<float>& weight) -> Matrix<double> {
    return x * weight.cast<double>().transpose();
  };
  const auto map = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  Tokens tokens(Keys::random);
  Matrix<float> x(whole ? length : block, dim), given(x.rows(), dim);
  Matrix<double> memory = Matrix<double>::Zero(dim, dim), expected(block, dim);
  Vector<double> key_sum = Vector<double>::Zero(dim);
  Layer::State state = layer.initial_state();
  Workspace workspace;
  double early = 0, late = 0;
  std::size_t piece = 0;
  for (Index end = block; end <= length; end += block) {
    tokens.next(false);
    // A mean other than 0 makes sums grow with the length, not with its root.
    x.middleRows(whole ? end - block : 0, block) = tokens.query.array() + 0.5f;
    for (Index t = 0, count = 0; t < block && !whole; t += count) {
      count = std::min(mixed_pieces[piece++ % mixed_pieces.size()], block - t);
      const auto rows = [&](const auto& sequence) { return sequence.rows(t, count); };
      layer.prefill(state, rows(ConstSequence<float>(x)), rows(Sequence<float>(given)), workspace);
    }
    const Matrix<double> exact_x = (tokens.query.array() + 0.5f).matrix().cast<double>();
    const Matrix<double> q = project(exact_x, weights.query).unaryExpr(map);
    const Matrix<double> k = project(exact_x, weights.key).unaryExpr(map), v = project(exact_x, weights.value);
    Matrix<double> mixed(block, dim);
    for (Index t = 0; t < block; ++t) {
      memory.noalias() += k.row(t).transpose() * v.row(t);
      key_sum += Vector<double>(k.row(t));
      mixed.row(t) = (q.row(t) * memory) / (q.row(t).dot(key_sum.transpose()) + double(normalizer_epsilon));
    }
    if (end != early_length && end != length) continue;
    if (whole) {
      layer.forward(ConstSequence<float>(x).rows(0, end), Sequence<float>(given).rows(0, end), workspace);
    }
    (end == early_length ? early : late) =
        error_of(given.middleRows(whole ? end - block : 0, block), project(mixed, weights.output));
  }
  INFO((whole ? "forward" : "pieces and steps")
       << ": error " << early << " at " << early_length << " tokens, " << late << " at " << length);
  CHECK(late <= 3 * std::max(early, least_error));
}

TEST_CASE("errors of the linear attention layer do not grow with the length") {
  check_layer(100000, true);
  check_layer(100000, false);
}
TEST_CASE("errors of the linear attention layer after a million tokens", "[.slow]") {
  check_layer(1000000, true);
  check_layer(1000000, false);
}

}  // namespace
}  // namespace seqmix::test
