// Gated slot attention with one slot and log-linear attention with equal level scales are simple gated linear attention.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <seqmix/core/tensor.hpp>
#include <seqmix/linear/gated_slot_attention.hpp>
#include <seqmix/linear/log_linear_attention.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>

#include "limits/limits.hpp"

namespace seqmix::test::limits {
namespace {

/// Log decays [length, heads], some of them resets.
template <class T>
Matrix<T> log_decays(Index length, Rng& rng) {
  Matrix<T> result(length, heads);
  for (Index i = 0; i < result.size(); ++i) {
    result.data()[i] = rng.integer(0, 30) == 0 ? -std::numeric_limits<T>::infinity() : T(-std::exp(3 * rng.normal()));
  }
  return result;
}

TEMPLATE_TEST_CASE("gated slot attention with one slot reads one fading value", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 7, 8, 64, 131, 300}) {
    Rng rng(1);
    Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng),
        value(length, heads, value_dim, rng), slot(length, heads, 1, rng);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    const Matrix<T> log_decay = log_decays<T>(length, rng), ones = Matrix<T>::Ones(length, heads);
    Tensor<T> keys({heads, key_dim, 1}), values({heads, 1, value_dim}), memory({heads, 1, value_dim});
    Workspace workspace;
    gated_slot_attention<T>(query.view, key.view, value.view, slot.view, Sequence<const T>(log_decay).heads(heads),
                            T(0.5), keys, values, a.view, workspace);
    simple_gated_linear_attention<T>(Sequence<const T>(ones).heads(heads), slot.view, value.view, log_decay, T(1),
                                     memory, b.view, workspace);
    CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
  }
}

TEMPLATE_TEST_CASE("gated slot attention whose queries share memories is that with a memory for each", "", float,
                   double) {
  using T = TestType;
  constexpr Index readers = 2, slots = 5, all = readers * heads;
  for (const Index length : {1, 6, 40, 150}) {
    Rng rng(2);
    Stream<T> query(length, all, key_dim, rng), key(length, heads, key_dim, rng), value(length, heads, value_dim, rng),
        slot(length, heads, slots, rng);
    Stream<T> a(length, all, value_dim, rng), b(length, all, value_dim, rng);
    Matrix<T> log_decay(length, heads * slots);
    for (Index i = 0; i < log_decay.size(); ++i) log_decay.data()[i] = T(-std::exp(2 * rng.normal()));
    const auto decays = Sequence<const T>(log_decay).heads(heads);
    Tensor<T> keys({heads, key_dim, slots}), values({heads, slots, value_dim});
    Tensor<T> own_keys({all, key_dim, slots}), own_values({all, slots, value_dim});
    Workspace workspace;
    gated_slot_attention<T>(query.view, key.view, value.view, slot.view, decays, T(1), keys, values, a.view, workspace);
    gated_slot_attention<T>(query.view, key.view, value.view, slot.view, decays, T(1), own_keys, own_values, b.view,
                            workspace);
    CHECK(a.numbers == b.numbers);
    for (Index h = 0; h < all; ++h) {
      const auto same = [&](const Tensor<T>& shared, const Tensor<T>& own, Index size) {
        return std::equal(own.begin() + h * size, own.begin() + (h + 1) * size, shared.begin() + h / readers * size);
      };
      CHECK(same(keys, own_keys, key_dim * slots));
      CHECK(same(values, own_values, slots * value_dim));
    }
  }
}

TEMPLATE_TEST_CASE("log-linear attention that weighs all levels alike is simple gated linear attention", "", float,
                   double) {
  using T = TestType;
  for (const Index length : {1, 7, 64, 131, 300}) {
    Rng rng(3);
    Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng),
        value(length, heads, value_dim, rng);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    const Matrix<T> log_decay = log_decays<T>(length, rng), ones = Matrix<T>::Ones(length, heads * 10);
    LogLinearState<T> state(length, heads, key_dim, value_dim);
    Tensor<T> memory({heads, key_dim, value_dim});
    Workspace workspace;
    log_linear_attention<T>(query.view, key.view, value.view, log_decay, Sequence<const T>(ones).heads(heads), T(0.5),
                            state, a.view, workspace);
    simple_gated_linear_attention<T>(query.view, key.view, value.view, log_decay, T(0.5), memory, b.view, workspace);
    CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
  }
}

}  // namespace
}  // namespace seqmix::test::limits
