// Simple gated linear attention: linear attention whose memory fades by one factor for each token and head. The core of
// Mamba-2.
//
//   Source    Yang et al. 2023, arXiv:2312.06635, section 4; Dao, Gu 2024, arXiv:2405.21060;
//             fla-org/flash-linear-attention, fla/ops/simple_gla/naive.py
//   Glossary  L length   H heads   K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerToken
//   Size      a core without a layer: all but its checks is the engine's
//
// S_t = exp(g_t) S_{t-1} + k_t v_t^T,   y_t = scale * q_t^T S_t
// ONNX's LinearAttention: see linear/gated_delta_rule.hpp.
#pragma once

#include <seqmix/engine/linear_recurrence.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Simple gated linear attention from and into `memory` [H, K, V]. query, key [L, H', K], value [L, H', V], log_decay
/// (<= 0, -infinity allowed) [L, H'], output [L, H, V]; every H' divides H. Or query and output have a multiple of H
/// heads: consecutive ones then read one memory, at the cost of as many. O(L H K V) time, O(H K V) scratch. Allocates
/// nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that
/// overlap.
template <std::floating_point T>
void simple_gated_linear_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                                   ConstSequence<T> log_decay, std::type_identity_t<T> scale, MemoryView<T> memory,
                                   HeadSequence<T> output, Workspace& workspace) {
  constexpr std::string_view name = "simple_gated_linear_attention";
  expect_grouped_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shared_heads<T>(name, "log_decay", log_decay, memory, output);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerToken<T>>{query, key, value, {log_decay}, {}, {}, scale, memory, output},
      workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
