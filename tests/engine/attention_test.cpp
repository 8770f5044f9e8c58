// The attention engine through the two operators that are made of it, against attention written from its definition.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <seqmix/softmax/softmax_attention.hpp>
#include <seqmix/sparse/block_sparse_attention.hpp>
#include <vector>

#include "support/executors.hpp"

namespace seqmix::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class T>
struct Streams {
  Index rows, keys, heads, kv_heads, head_dim, value_dim;
  Matrix<T> query, key, value, y;

  Streams(Index M, Index N, Index H, Index Hk, Index d, Index dv, Rng& rng)
      : rows(M),
        keys(N),
        heads(H),
        kv_heads(Hk),
        head_dim(d),
        value_dim(dv),
        query(uniform_matrix<T>(M, H * d, 1.5, rng)),
        key(uniform_matrix<T>(N, Hk * d, 1.5, rng)),
        value(uniform_matrix<T>(N, Hk * dv, 1, rng)),
        y(Matrix<T>::Constant(M, H * dv, T(nan))) {}

  HeadSequence<const T> q() const { return Sequence<const T>(query).heads(heads); }
  HeadSequence<const T> k() const { return Sequence<const T>(key).heads(kv_heads); }
  HeadSequence<const T> v() const { return Sequence<const T>(value).heads(kv_heads); }
  HeadSequence<T> out() { return Sequence<T>(y).heads(heads); }
};

/// Attention from its definition. keep(i, j); logit(h, i, j, scaled inner product).
template <class T, class Keep, class Logit>
Matrix<double> naive(const Streams<T>& s, double scale, Keep keep, Logit logit, const Vector<T>& sink = {}) {
  Matrix<double> y = Matrix<double>::Zero(s.rows, s.heads * s.value_dim);
  for (Index h = 0; h < s.heads; ++h) {
    const auto key = s.k().head(h / (s.heads / s.kv_heads)), value = s.v().head(h / (s.heads / s.kv_heads));
    for (Index i = 0; i < s.rows; ++i) {
      std::vector<double> logits(std::size_t(s.keys), -infinity);
      double largest = sink.size() > 0 ? double(sink[h]) : -infinity;
      for (Index j = 0; j < s.keys; ++j) {
        if (!keep(i, j)) continue;
        double product = 0;
        for (Index d = 0; d < s.head_dim; ++d) product += double(s.q()(i, h, d)) * double(key(j, d));
        largest = std::max(largest, logits[std::size_t(j)] = logit(h, i, j, scale * product));
      }
      if (largest == -infinity) continue;
      double sum = sink.size() > 0 ? std::exp(double(sink[h]) - largest) : 0;
      for (Index j = 0; j < s.keys; ++j) {
        const double weight = std::exp(logits[std::size_t(j)] - largest);
        sum += weight;
        if (logits[std::size_t(j)] == -infinity) continue;  // what isn't seen may be NaN
        for (Index c = 0; c < s.value_dim; ++c) y(i, h * s.value_dim + c) += weight * double(value(j, c));
      }
      y.row(i).segment(h * s.value_dim, s.value_dim) /= sum;
    }
  }
  return y;
}

/// Rounding errors: a logit is a sum of head_dim products of size up to 1.5 * 1.5 * scale, and a few more operations on
/// numbers up to `logit_size`; an error of a logit changes y by at most twice as much times |value| <= 1. Exponentials are
/// right to 9 ulp; sums of weights and values are made of up to 512 terms at a time, and add one rounding each.
template <class T>
double tolerance(const Streams<T>& s, double scale, double logit_size) {
  const double eps = double(std::numeric_limits<T>::epsilon());
  const double products = double(s.head_dim) * 1.5 * 1.5 * std::abs(scale);
  return eps * (2 * (std::sqrt(double(s.head_dim)) + 4) * (products + logit_size) + 9 + 32);
}

template <class A, class B>
double difference(const A& a, const B& b) {
  double most = 0;
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index c = 0; c < a.cols(); ++c) {
      const double d = std::abs(double(a(i, c)) - double(b(i, c)));
      if (!(d <= most)) most = d;
    }
  }
  return most;
}

template <class T>
bool same_bits(const Matrix<T>& a, const Matrix<T>& b, Index rows) {
  return std::memcmp(a.data(), b.data(), std::size_t(rows * a.cols()) * sizeof(T)) == 0;
}

std::optional<Index> maybe(Rng& rng, Index most) {
  if (rng.integer(0, 1) == 0) return std::nullopt;
  return rng.integer(0, most);
}

const Index lengths[] = {0, 1, 2, 4, 5, 6, 7, 13, 16, 17, 31, 33, 63, 95, 97, 127, 257, 511, 513, 600};

Index some_length(Rng& rng) { return lengths[rng.integer(0, std::ssize(lengths) - 1)]; }

}  // namespace

TEMPLATE_TEST_CASE("softmax_attention agrees with its definition in any shape", "[attention]", float, double) {
  using T = TestType;
  Rng rng(7);
  Workspace workspace;
  const Index head_dims[] = {1, 3, 6, 8, 16, 20, 64, 128};
  for (int trial = 0; trial < 120; ++trial) {
    const Index kv_heads = rng.integer(1, 3), heads = kv_heads * rng.integer(1, 3);
    const Index keys = some_length(rng), rows = rng.integer(0, 2) == 0 ? keys : some_length(rng);
    Streams<T> s(rows, keys, heads, kv_heads, head_dims[rng.integer(0, 7)], head_dims[rng.integer(0, 7)], rng);
    SoftmaxAttentionOptions<T> options;
    options.causal = rng.integer(0, 1) == 0;
    options.window_left = maybe(rng, 300);
    options.window_right = maybe(rng, 300);
    if (rng.integer(0, 2) == 0) options.scale = T(rng.uniform(0.1, 2));
    if (rng.integer(0, 2) == 0) options.softcap = T(rng.uniform(1, 5));
    Vector<T> slopes, sink, bias;
    if (rng.integer(0, 2) == 0) options.alibi_slopes = slopes = uniform_vector<T>(heads, 0, 1, rng);
    if (rng.integer(0, 2) == 0) options.sink = sink = uniform_vector<T>(heads, -3, 3, rng);
    if (rng.integer(0, 2) == 0) {
      bias = uniform_vector<T>(keys, -4, 4, rng);
      for (Index j = 0; j < keys; ++j) {
        if (rng.integer(0, 4) == 0) bias[j] = T(-10000);
        if (rng.integer(0, 4) == 0) bias[j] = T(-infinity);
      }
      options.key_bias = bias;
    }
    const double scale = double(options.scale.value_or(T(1 / std::sqrt(double(s.head_dim)))));
    const Index offset = keys - rows;
    double logit_size = 1;
    const auto expected = naive(
        s, scale,
        [&](Index i, Index j) {
          return (!options.causal || j <= i + offset) &&
                 (!options.window_left || j >= i + offset - *options.window_left) &&
                 (!options.window_right || j <= i + offset + *options.window_right);
        },
        [&](Index h, Index i, Index j, double logit) {
          if (options.softcap > 0) logit = options.softcap * std::tanh(logit / double(options.softcap));
          if (slopes.size() > 0) logit -= double(slopes[h]) * double(std::abs(i + offset - j));
          if (bias.size() > 0) logit += double(bias[j]);
          if (logit > -1000) logit_size = std::max(logit_size, std::abs(logit));
          return logit;
        },
        sink);
    workspace.poison();
    softmax_attention<T>(s.q(), s.k(), s.v(), options, s.out(), workspace);
    CAPTURE(trial, rows, keys, heads, kv_heads, s.head_dim, s.value_dim);
    CHECK(difference(s.y, expected) <= tolerance(s, scale, logit_size));
  }
}

TEMPLATE_TEST_CASE("softmax_attention continues from a cache, cut anywhere", "[attention]", float, double) {
  using T = TestType;
  Rng rng(8);
  Workspace workspace;
  for (int trial = 0; trial < 30; ++trial) {
    const Index length = some_length(rng), kv_heads = rng.integer(1, 2), heads = kv_heads * rng.integer(1, 2);
    Streams<T> s(length, length, heads, kv_heads, rng.integer(1, 20), rng.integer(1, 20), rng);
    Streams<T> whole = s;
    SoftmaxAttentionOptions<T> options;
    options.window_left = maybe(rng, 60);
    options.rotary = Rotary::standard(s.head_dim / 2 * 2, 10000, RotaryPairs::half);
    softmax_attention<T>(s.q(), s.k(), s.v(), options, whole.out(), workspace);
    KeyValueCache<T> cache(kv_heads, s.head_dim, s.value_dim, options.window_left);
    for (Index begin = 0; begin < length;) {
      const Index count = std::min(length - begin, rng.integer(0, 2) == 0 ? rng.integer(0, 100) : Index(1));
      const KeyValueCache<T> copy = cache;
      softmax_attention<T>(cache, s.q().rows(begin, count), s.k().rows(begin, count), s.v().rows(begin, count), options,
                           s.out().rows(begin, count), workspace);
      CHECK(copy.seen() == begin);
      begin += count;
      CHECK(cache.seen() == begin);
      CHECK(cache.size() == std::min(begin, options.window_left.value_or(begin) + 1));
    }
    CAPTURE(trial, length);
    const double scale = 1 / std::sqrt(double(s.head_dim));
    CHECK(difference(s.y, whole.y) <= 2 * tolerance(s, scale, 1));
  }
}

TEST_CASE("a ring of keys holds the last tokens in order", "[attention]") {
  KeyValueCache<float> cache(1, 1, 1, 4);
  Rng rng(3);
  float next = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const Index count = rng.integer(0, 8);
    Matrix<float> key(count, 1);
    for (Index t = 0; t < count; ++t) key(t, 0) = next++;
    const auto rows = Sequence<const float>(key).heads(1);
    cache.append(rows, rows);
    const Index size = std::min<Index>(Index(next), 5);
    REQUIRE(cache.size() == size);
    Index t = 0;
    for (const auto& segment : cache.segments()) {
      for (Index i = 0; i < segment.length(); ++i, ++t) {
        CHECK(segment.key(i, 0, 0) == next - float(size) + float(t));
        CHECK(segment.value(i, 0, 0) == next - float(size) + float(t));
      }
    }
    CHECK(t == size);
  }
}

TEMPLATE_TEST_CASE("what a row doesn't see leaves no trace, whatever it is", "[attention]", float, double) {
  using T = TestType;
  Rng rng(9);
  Workspace workspace;
  for (int trial = 0; trial < 40; ++trial) {
    const Index length = rng.integer(1, 200), rows = rng.integer(0, 1) == 0 ? length : rng.integer(1, 4);
    Streams<T> s(rows, length, 2, 1, rng.integer(1, 20), rng.integer(1, 20), rng), changed = s;
    SoftmaxAttentionOptions<T> options;
    options.window_left = maybe(rng, 40);
    softmax_attention<T>(s.q(), s.k(), s.v(), options, s.out(), workspace);
    const Index at = rng.integer(0, length - 1), offset = length - rows;
    const double poison[] = {nan, infinity, -infinity, 1e30};
    const T value = T(poison[rng.integer(0, 3)]);
    const bool key_too = rng.integer(0, 1) == 0;
    changed.value.row(at).setConstant(value);
    if (key_too) changed.key.row(at).setConstant(T(nan));
    softmax_attention<T>(changed.q(), changed.k(), changed.v(), options, changed.out(), workspace);
    for (Index i = 0; i < rows; ++i) {
      const bool sees = at <= i + offset && at >= i + offset - options.window_left.value_or(length);
      CAPTURE(trial, length, rows, at, i, value, key_too);
      if (!sees) {
        CHECK(std::memcmp(&s.y(i, 0), &changed.y(i, 0), std::size_t(s.y.cols()) * sizeof(T)) == 0);
      } else if (key_too || std::isnan(value)) {
        CHECK(changed.y.row(i).array().isNaN().all());
      } else {
        CHECK((changed.y.row(i).array() != s.y.row(i).array()).all());
      }
    }
  }
}

TEST_CASE("keys with a bias of minus infinity may hold anything", "[attention]") {
  Rng rng(10);
  Workspace workspace;
  for (const Index rows : {1, 3, 40}) {
    Streams<float> s(rows, 40, 2, 2, 8, 8, rng);
    Vector<float> bias = Vector<float>::Zero(40);
    for (Index j = 5; j < 30; ++j) {
      bias[j] = -std::numeric_limits<float>::infinity();
      s.value.row(j).setConstant(float(nan));
      s.key.row(j).setConstant(j % 2 == 0 ? float(nan) : float(infinity));
    }
    SoftmaxAttentionOptions<float> options;
    options.causal = false;
    options.key_bias = bias;
    softmax_attention<float>(s.q(), s.k(), s.v(), options, s.out(), workspace);
    const auto expected = naive(
        s, 1 / std::sqrt(8.0), [](Index, Index j) { return j < 5 || j >= 30; },
        [](Index, Index, Index, double logit) { return logit; });
    CHECK(difference(s.y, expected) <= tolerance(s, 1 / std::sqrt(8.0), 1));
    bias.setConstant(-std::numeric_limits<float>::infinity());
    softmax_attention<float>(s.q(), s.k(), s.v(), options, s.out(), workspace);
    CHECK((s.y.array() == 0).all());
  }
}

TEMPLATE_TEST_CASE("logits of any size are safe", "[attention]", float, double) {
  using T = TestType;
  Rng rng(11);
  Workspace workspace;
  for (const Index rows : {1, 50}) {
    for (const double size : {1e3, 1e12, 1e30}) {
      // One channel: the logit of key j is size * j * query, growing to the last key or falling from the first.
      for (const double sign : {1.0, -1.0}) {
        Streams<T> s(rows, 700, 1, 1, 1, 3, rng);
        s.query.setConstant(T(sign));
        for (Index j = 0; j < 700; ++j) s.key(j, 0) = T(size * double(j));
        SoftmaxAttentionOptions<T> options;
        options.causal = false;
        softmax_attention<T>(s.q(), s.k(), s.v(), options, s.out(), workspace);
        const Index winner = sign > 0 ? 699 : 0;
        for (Index i = 0; i < rows; ++i) CHECK((s.y.row(i).array() == s.value.row(winner).array()).all());
      }
    }
  }
}

TEMPLATE_TEST_CASE("the largest finite biases and sinks are still finite", "[attention]", float, double) {
  // Padding is often marked with the lowest number. Where all keys are, nothing tells them apart: y is their mean.
  using T = TestType;
  Rng rng(14);
  Workspace workspace;
  for (const Index rows : {1, 50}) {
    Streams<T> s(rows, 8, 1, 1, 4, 3, rng);
    const Eigen::RowVector3d mean = s.value.template cast<double>().colwise().mean();
    SoftmaxAttentionOptions<T> options;
    options.causal = false;
    Vector<T> bias = Vector<T>::Constant(8, std::numeric_limits<T>::lowest()), sink(1);
    options.key_bias = bias;
    for (const T extreme : {std::numeric_limits<T>::lowest(), std::numeric_limits<T>::max()}) {
      bias.setConstant(extreme);
      softmax_attention<T>(s.q(), s.k(), s.v(), options, s.out(), workspace);
      CHECK(difference(s.y, Matrix<double>(mean.replicate(rows, 1))) <= 16 * double(std::numeric_limits<T>::epsilon()));
    }
    bias.setConstant(std::numeric_limits<T>::lowest());
    bias[5] = 0;
    softmax_attention<T>(s.q(), s.k(), s.v(), options, s.out(), workspace);
    for (Index i = 0; i < rows; ++i) CHECK((s.y.row(i).array() == s.value.row(5).array()).all());

    options.key_bias = {};
    options.sink = sink;
    for (const T extreme : {std::numeric_limits<T>::max(), std::numeric_limits<T>::infinity()}) {
      sink[0] = extreme;
      softmax_attention<T>(s.q(), s.k(), s.v(), options, s.out(), workspace);
      CHECK((s.y.array() == 0).all());
    }
  }
}

TEST_CASE("sums over many keys stay exact", "[attention]") {
  // Equal logits: y is the mean of the values. Summed one by one in float, 400000 ones would lose four digits.
  Rng rng(12);
  Workspace workspace;
  for (const Index rows : {1, 6}) {
    Streams<float> s(rows, 400000, 1, 1, 2, 2, rng);
    s.query.setZero();
    s.value.array() += 2;
    SoftmaxAttentionOptions<float> options;
    options.causal = false;
    softmax_attention<float>(s.q(), s.k(), s.v(), options, s.out(), workspace);
    const Eigen::RowVector2d mean = s.value.cast<double>().colwise().mean();
    CHECK(difference(s.y, Matrix<double>(mean.replicate(rows, 1))) <= 1e-5 * mean.maxCoeff());
  }
}

TEST_CASE("attention gives the same bits for any number of threads", "[attention]") {
  Rng rng(13);
  // So many keys that even a single row of a single head of keys is shared between threads.
  constexpr Index keys = 2500;
  static_assert(keys * 2 * 64 >= detail::parallel_decode_numbers);
  const Vector<float> sink = uniform_vector<float>(3, -3, 3, rng);
  for (const Index rows : {1, 4, 50, 333}) {
    for (const auto& [kv_heads, window] : {std::pair<Index, bool>{1, false}, {1, true}, {3, false}}) {
      Streams<float> s(rows, keys, 3, kv_heads, 64, 64, rng);
      SoftmaxAttentionOptions<float> options;
      if (window) options.window_left = 700;
      if (kv_heads == 1) options.sink = sink;
      Workspace serial;
      softmax_attention<float>(s.q(), s.k(), s.v(), options, s.out(), serial);
      for (auto& [name, executor] : all_executors()) {
        Workspace workspace(*executor);
        Streams<float> other = s;
        other.y.setConstant(float(nan));
        softmax_attention<float>(other.q(), other.k(), other.v(), options, other.out(), workspace);
        CAPTURE(name, rows, kv_heads, window);
        CHECK(same_bits(s.y, other.y, rows));
      }
    }
  }
}

TEST_CASE("block_sparse_attention agrees with its definition", "[attention]") {
  Rng rng(14);
  Workspace workspace;
  const Index sizes[] = {1, 5, 8, 16, 24, 64, 100};
  for (int trial = 0; trial < 60; ++trial) {
    const Index length = some_length(rng), kv_heads = rng.integer(1, 2);
    Streams<float> s(length, length, 2, kv_heads, rng.integer(1, 20), rng.integer(1, 20), rng);
    BlockSparseAttentionOptions<float> options;
    options.block_rows = sizes[rng.integer(0, 6)];
    options.block_columns = sizes[rng.integer(0, 6)];
    options.causal = rng.integer(0, 1) == 0;
    const Index rows = (length + options.block_rows - 1) / options.block_rows;
    const Index columns = (length + options.block_columns - 1) / options.block_columns;
    std::vector<std::uint8_t> blocks(std::size_t(rows * columns)), padding;
    const double density = rng.uniform();
    for (auto& block : blocks) block = rng.uniform() < density;
    if (rng.integer(0, 1) == 0) {
      for (Index j = 0; j < length; ++j) padding.push_back(rng.integer(0, 5) > 0);
      options.padding = {padding.data(), length};
    }
    const auto present = [&](Index j) { return padding.empty() || padding[std::size_t(j)] != 0; };
    const auto expected = naive(
        s, 1 / std::sqrt(double(s.head_dim)),
        [&](Index i, Index j) {
          return present(i) && present(j) && (!options.causal || j <= i) &&
                 blocks[std::size_t(i / options.block_rows * columns + j / options.block_columns)] != 0;
        },
        [](Index, Index, Index, double logit) { return logit; });
    const Sequence<const std::uint8_t> mask(blocks.data(), rows, columns);
    block_sparse_attention<float>(s.q(), s.k(), s.v(), mask, options, s.out(), workspace);
    CAPTURE(trial, length, options.block_rows, options.block_columns, options.causal, s.head_dim, s.value_dim);
    CHECK(difference(s.y, expected) <= tolerance(s, 1 / std::sqrt(double(s.head_dim)), 1));

    // Values that some rows of a tile see and others don't.
    if (length == 0) continue;
    Streams<float> changed = s;
    const Index at = rng.integer(0, length - 1);
    changed.value.row(at).setConstant(float(nan));
    block_sparse_attention<float>(changed.q(), changed.k(), changed.v(), mask, options, changed.out(), workspace);
    for (Index i = 0; i < length; ++i) {
      const bool sees = present(i) && present(at) && (!options.causal || at <= i) &&
                        blocks[std::size_t(i / options.block_rows * columns + at / options.block_columns)] != 0;
      if (sees) {
        CHECK(changed.y.row(i).array().isNaN().all());
      } else {
        CHECK(std::memcmp(&s.y(i, 0), &changed.y(i, 0), std::size_t(s.y.cols()) * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("attention refuses what doesn't fit, and changes nothing", "[attention]") {
  using Catch::Matchers::ContainsSubstring;
  Rng rng(15);
  Workspace workspace;
  Streams<float> s(4, 6, 4, 2, 8, 6, rng);
  SoftmaxAttentionOptions<float> options;
  const Matrix<float> before = s.y;
  const auto refuses = [&](auto call, const char* what) {
    CHECK_THROWS_AS(call(), std::invalid_argument);
    CHECK_THROWS_WITH(call(), ContainsSubstring("softmax_attention") && ContainsSubstring(what));
    CHECK(same_bits(s.y, before, s.y.rows()));
  };
  refuses([&] { softmax_attention<float>(s.q(), s.k().columns(0, 7), s.v(), options, s.out(), workspace); },
          "key: expected shape [6, 2, 8], given [6, 2, 7]");
  refuses([&] { softmax_attention<float>(s.q(), s.k(), s.v().rows(0, 5), options, s.out(), workspace); },
          "value: expected shape [6, 2, 6], given [5, 2, 6]");
  refuses([&] { softmax_attention<float>(s.q(), s.k(), s.v(), options, s.out().rows(0, 3), workspace); },
          "y: expected shape [4, 4, 6], given [3, 4, 6]");
  const HeadSequence<const float> three(s.query.data(), 4, 3, 8, 32, 8);
  refuses(
      [&] {
        softmax_attention<float>(three, s.k(), s.v(), options, HeadSequence<float>(s.y.data(), 4, 3, 6), workspace);
      },
      "multiple");
  const HeadSequence<float> aliased(s.value.data(), 4, 4, 6, 0, 0);
  refuses([&] { softmax_attention<float>(s.q(), s.k(), s.v(), options, aliased, workspace); }, "overlaps value");
  Vector<float> three_numbers = Vector<float>::Zero(3);
  const auto with = [&](auto change) {
    return [&, change] {
      SoftmaxAttentionOptions<float> changed;
      change(changed);
      softmax_attention<float>(s.q(), s.k(), s.v(), changed, s.out(), workspace);
    };
  };
  refuses(with([&](auto& o) { o.sink = three_numbers; }), "sink: expected shape [4], given [3]");
  refuses(with([&](auto& o) { o.alibi_slopes = three_numbers; }), "alibi_slopes: expected shape [4], given [3]");
  refuses(with([&](auto& o) { o.key_bias = three_numbers; }), "key_bias: expected shape [6], given [3]");
  refuses(with([&](auto& o) { o.window_left = -1; }), "window_left");
  for (const float softcap : {-1.0f, 1e-40f, 3e38f, float(INFINITY), float(nan)}) {
    refuses(with([&](auto& o) { o.softcap = softcap; }), "softcap");
  }
  refuses(with([&](auto& o) { o.rotary = Rotary::standard(10, 10000, RotaryPairs::half); }), "rotary");
  CHECK_THROWS_AS(Rotary::standard(5, 10000, RotaryPairs::half), std::invalid_argument);

  KeyValueCache<float> ring(2, 8, 6, 3);
  options.window_left = 4;
  refuses([&] { softmax_attention<float>(ring, s.q(), s.k(), s.v(), options, s.out(), workspace); }, "window_left");
  CHECK(ring.seen() == 0);

  std::uint8_t blocks[4] = {1, 1, 1, 1};
  CHECK_THROWS_WITH(block_sparse_attention<float>(s.q(), s.k().rows(0, 4), s.v().rows(0, 4), {blocks, 2, 2},
                                                  {.block_rows = 3, .block_columns = 4}, s.out(), workspace),
                    ContainsSubstring("block_mask: expected shape [2, 1], given [2, 2]"));
  CHECK(same_bits(s.y, before, s.y.rows()));
}

TEST_CASE("the layer refuses impossible configurations", "[attention]") {
  Rng rng(16);
  const auto build = [&](SoftmaxAttentionConfig config) {
    return SoftmaxAttention<float>(config, SoftmaxAttention<float>::random_weights(config, rng));
  };
  CHECK_NOTHROW(build({.channels = 8, .heads = 2}));
  CHECK_THROWS_AS(build({.channels = 8, .heads = 3}), std::invalid_argument);
  CHECK_THROWS_AS(build({.channels = 8, .heads = 4, .kv_heads = 3}), std::invalid_argument);
  CHECK_THROWS_AS(build({.channels = 8, .window_right = 1}), std::invalid_argument);
  CHECK_THROWS_AS(build({.channels = 8, .rope = RotaryPairs::half, .rotary_dim = 3}), std::invalid_argument);
  CHECK_THROWS_AS(build({.channels = 8, .rope = RotaryPairs::half, .rotary_dim = 10}), std::invalid_argument);
  auto weights = SoftmaxAttention<float>::random_weights({.channels = 8, .sink = true}, rng);
  CHECK_THROWS_AS(SoftmaxAttention<float>({.channels = 8}, weights), std::invalid_argument);
  weights.key.resize(7, 8);
  CHECK_THROWS_AS(SoftmaxAttention<float>({.channels = 8, .sink = true}, weights), std::invalid_argument);
}

}  // namespace seqmix::test
