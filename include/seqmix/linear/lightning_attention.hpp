// Lightning attention: linear attention whose heads fade at fixed paces, slower in deeper layers.
//
//   Source    Qin et al. 2024, arXiv:2401.04658, 2405.17381; fla-org/flash-linear-attention,
//             fla/ops/lightning_attn/chunk.py
//   Glossary  L length   H heads   K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerHead
//   Size      a core and its decays, without a layer: the rest is the engine's
//
// S_t = exp(g_h) S_{t-1} + k_t v_t^T,   y_t = scale * q_t^T S_t,   g_h = -(8 / H) (1 - layer / layers) h
#pragma once

#include <seqmix/core/error.hpp>
#include <seqmix/engine/linear_recurrence.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// g_h = -(8 / heads) (1 - layer / layers) h, h = 0 .. heads - 1: head 0 never forgets. `layer` counts from 0. Allocates.
/// Throws std::invalid_argument unless 0 <= layer <= layers, layers > 0 and heads >= 0.
template <std::floating_point T>
Vector<T> lightning_log_decay(Index heads, Index layer, Index layers) {
  expect(heads >= 0, "lightning_log_decay", "heads", "must not be negative");
  expect(layers > 0 && layer >= 0 && layer <= layers, "lightning_log_decay", "layer", "must be in 0 .. layers");
  const double depth = 1.0 - double(layer) / double(layers);
  return Vector<T>::NullaryExpr(heads, [&](Index h) { return T(-8.0 / double(heads) * depth * double(h)); });
}

/// Lightning attention from and into `memory` [H, K, V]. query, key [L, H', K], value [L, H', V], every H' dividing H;
/// log_decay [H] <= 0, of lightning_log_decay; output [L, H, V]. O(L H K V) time, O(H K V) scratch. Allocates nothing once
/// `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void lightning_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                         ConstToken<T> log_decay, std::type_identity_t<T> scale, MemoryView<T> memory,
                         HeadSequence<T> output, Workspace& workspace) {
  constexpr std::string_view name = "lightning_attention";
  expect_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shape(name, "log_decay", {memory.heads()}, log_decay);
  expect_apart_from_results(name, "log_decay", log_decay, memory, output);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerHead<T>>{query, key, value, {log_decay}, {}, {}, scale, memory, output},
      workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
