// Operators that become each other at the ends of their parameters' ranges must agree there: this ties engines and
// families together where no reference ties them.

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/linear_attention.hpp>
#include <seqmix/recurrent/retention.hpp>
#include <seqmix/recurrent/rwkv5.hpp>
#include <seqmix/recurrent/rwkv6.hpp>
#include <seqmix/softmax/softmax_attention.hpp>
#include <seqmix/sparse/block_sparse_attention.hpp>
#include <vector>

#include "limits/limits.hpp"

namespace seqmix::test::limits {
namespace {

TEMPLATE_TEST_CASE("retention that forgets nothing is linear attention without feature map and norm", "", float,
                   double) {
  using T = TestType;
  for (const Index length : {1, 7, 8, 64, 131}) {
    Rng rng(1);
    Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng),
        value(length, heads, value_dim, rng);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    Tensor<T> memory_a({heads, key_dim, value_dim}), memory_b = memory_a;
    Workspace workspace;
    retention<T>(query.view, key.view, value.view, Vector<T>(Vector<T>::Zero(heads)), T(0.5), memory_a, a.view,
                 workspace);
    linear_attention<feature_map::Identity, T>(query.view, key.view, value.view, {.scale = T(0.5), .normalize = false},
                                               memory_b, {}, b.view, workspace);
    CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
    for (std::size_t i = 0; i < memory_a.size(); ++i) {
      CHECK(std::abs(memory_a[i] - memory_b[i]) <= T(tolerance<T>(length)) * std::sqrt(T(length)));
    }
  }
}

TEMPLATE_TEST_CASE("the last row of causal linear attention is that of the bidirectional", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 5, 48, 49, 200}) {
    Rng rng(2);
    Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng),
        value(length, heads, value_dim, rng);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    Tensor<T> memory({heads, key_dim, value_dim}), key_sum({heads, key_dim});
    Workspace workspace;
    linear_attention<feature_map::Elu1, T>(query.view, key.view, value.view, {}, memory,
                                           {key_sum.data(), heads, key_dim}, a.view, workspace);
    linear_attention_bidirectional<feature_map::Elu1, T>(query.view, key.view, value.view, {}, b.view, workspace);
    const Matrix<T> last_a = a.numbers.bottomRows(1), last_b = b.numbers.bottomRows(1);
    CHECK(difference(last_a, last_b) <= tolerance<T>(length));
  }
}

TEMPLATE_TEST_CASE("RWKV-6 with the same decay at every token is RWKV-5", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 9, 100}) {
    Rng rng(3);
    Stream<T> receptance(length, heads, key_dim, rng), key(length, heads, key_dim, rng);
    Stream<T> value(length, heads, value_dim, rng), decays(length, heads, key_dim, rng);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    const Matrix<T> bonus = normal_matrix<T>(heads, key_dim, 1.0, rng);
    Matrix<T> log_decay(heads, key_dim);
    for (Index i = 0; i < log_decay.size(); ++i) log_decay.data()[i] = T(-rng.uniform(0, 3));
    for (Index t = 0; t < length; ++t) {
      for (Index i = 0; i < log_decay.size(); ++i) decays.numbers(t, i) = log_decay.data()[i];
    }
    Tensor<T> memory_a({heads, key_dim, value_dim}), memory_b = memory_a;
    Workspace workspace;
    rwkv5<T>(receptance.view, key.view, value.view, log_decay, bonus, memory_a, a.view, workspace);
    rwkv6<T>(receptance.view, key.view, value.view, decays.view, bonus, memory_b, b.view, workspace);
    CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
  }
}

TEMPLATE_TEST_CASE("a window as long as the sequence is no window", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 6, 97, 200}) {
    Rng rng(4);
    Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng),
        value(length, heads, value_dim, rng);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    Workspace workspace;
    softmax_attention<T>(query.view, key.view, value.view, {}, a.view, workspace);
    SoftmaxAttentionOptions<T> windowed;
    windowed.window_left = length - 1;
    softmax_attention<T>(query.view, key.view, value.view, windowed, b.view, workspace);
    CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
  }
}

TEMPLATE_TEST_CASE("block-sparse attention with all blocks is dense", "", float, double) {
  using T = TestType;
  for (const bool causal : {false, true}) {
    for (const Index length : {1, 17, 130}) {
      Rng rng(5);
      Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng);
      Stream<T> value(length, heads, value_dim, rng), a(length, heads, value_dim, rng),
          b(length, heads, value_dim, rng);
      Workspace workspace;
      SoftmaxAttentionOptions<T> dense;
      dense.causal = causal;
      softmax_attention<T>(query.view, key.view, value.view, dense, a.view, workspace);
      const Index rows = (length + 7) / 8, columns = (length + 15) / 16;
      const std::vector<std::uint8_t> blocks(std::size_t(rows * columns), 1);
      BlockSparseAttentionOptions<T> options;
      options.block_rows = 8;
      options.block_columns = 16;
      options.causal = causal;
      block_sparse_attention<T>(query.view, key.view, value.view, {blocks.data(), rows, columns}, options, b.view,
                                workspace);
      CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
    }
  }
}

}  // namespace
}  // namespace seqmix::test::limits
