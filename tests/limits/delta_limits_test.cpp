// Where recurrences that take something out of their memory become others.

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <seqmix/core/buffer.hpp>
#include <seqmix/linear/gated_linear_attention.hpp>
#include <seqmix/linear/kimi_delta_attention.hpp>
#include <seqmix/recurrent/rwkv7.hpp>

#include "limits/limits.hpp"

namespace seqmix::test::limits {
namespace {

TEMPLATE_TEST_CASE("RWKV-7 that removes nothing is gated linear attention", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 9, 100}) {
    Rng rng(4);
    Stream<T> receptance(length, heads, key_dim, rng), key(length, heads, key_dim, rng);
    Stream<T> value(length, heads, value_dim, rng), decays(length, heads, key_dim, rng);
    Stream<T> some(length, heads, key_dim, rng), none(length, heads, key_dim, rng, 0.0);
    Stream<T> a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    decays.numbers = -decays.numbers.cwiseAbs();
    Tensor<T> memory_a({heads, key_dim, value_dim}), memory_b = memory_a;
    Workspace workspace;
    gated_linear_attention<T>(receptance.view, key.view, value.view, decays.view, T(1), memory_a, a.view, workspace);
    for (const bool reads : {false, true}) {
      std::fill(memory_b.begin(), memory_b.end(), T(0));
      rwkv7<T>(receptance.view, key.view, value.view, decays.view, reads ? some.view : none.view,
               reads ? none.view : some.view, memory_b, b.view, workspace);
      CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
    }
  }
}

TEMPLATE_TEST_CASE("the delta rule is RWKV-7 with a = -exp(w) k and b = beta k", "", float, double) {
  using T = TestType;
  for (const Index length : {1, 9, 100}) {
    Rng rng(5);
    Stream<T> query(length, heads, key_dim, rng), key(length, heads, key_dim, rng), decays(length, heads, key_dim, rng);
    Stream<T> value(length, heads, value_dim, rng), a(length, heads, value_dim, rng), b(length, heads, value_dim, rng);
    Matrix<T> beta(length, heads), faded(length, heads * key_dim), weighted(length, heads * key_dim);
    for (Index t = 0; t < length; ++t) {
      for (Index h = 0; h < heads; ++h) {
        beta(t, h) = T(rng.uniform());
        auto unit = key.numbers.row(t).segment(h * key_dim, key_dim);
        unit.normalize();
        weighted.row(t).segment(h * key_dim, key_dim) = beta(t, h) * unit;
      }
    }
    decays.numbers = -decays.numbers.cwiseAbs();
    faded = -(decays.numbers.array().exp() * key.numbers.array()).matrix();
    Tensor<T> memory_a({heads, key_dim, value_dim}), memory_b = memory_a;
    Workspace workspace;
    kimi_delta_attention<T>(query.view, key.view, value.view, decays.view, beta, T(1), QueryKeyNorm::none, memory_a,
                            a.view, workspace);
    const auto view = [](const Matrix<T>& numbers) { return ConstSequence<T>(numbers).heads(heads); };
    rwkv7<T>(query.view, view(weighted), value.view, decays.view, view(faded), view(weighted), memory_b, b.view,
             workspace);
    CHECK(difference(a.numbers, b.numbers) <= tolerance<T>(length));
  }
}

}  // namespace
}  // namespace seqmix::test::limits
