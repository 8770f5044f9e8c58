// The least work that an operator can do, and the least time that takes on this machine.
//
// Formulas count the arithmetic of the equations (a multiply-add is two operations; gates and scales that fold into
// multiply-adds count as such), the exponentials, and one read of the inputs and one write of the output in float. They
// know nothing of how the library computes. D = heads * head_dim channels, K and V the key and value width of a head.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <seqmix/core/view.hpp>

#include "support/probes.hpp"

namespace seqmix::bench {

/// Minimum work of one call.
struct Work {
  double flops = 0;
  double exps = 0;
  double streamed_bytes = 0;   // read or written once, from and to DRAM
  double resident_bytes = 0;   // read or written on every call: states, caches, weights. They stay in the caches
  double footprint_bytes = 0;  // memory that the resident bytes lie in: half of them where it is read and written

  Work& operator+=(const Work& other) {
    flops += other.flops;
    exps += other.exps;
    streamed_bytes += other.streamed_bytes;
    resident_bytes += other.resident_bytes;
    footprint_bytes += other.footprint_bytes;
    return *this;
  }
  friend Work operator+(Work a, const Work& b) { return a += b; }
  friend Work operator*(double count, Work work) {
    return {count * work.flops, count * work.exps, count * work.streamed_bytes, count * work.resident_bytes,
            count * work.footprint_bytes};
  }
};

/// Least time to move `bytes` bytes that lie in `footprint` bytes of memory, spread evenly over the threads: of memory
/// that is gone over again and again, every cache can hold as much as fits, and the rest comes from the level behind.
inline double least_seconds_to_move(double bytes, double footprint, const Peaks& peak) {
  double seconds = 0, nearer = 0;
  for (const MemoryLevel level : memory_levels) {
    const double here = std::min(footprint, bytes_within(level, peak.threads)) - nearer;
    if (here <= 0) continue;
    seconds += bytes * here / footprint / peak.read_bandwidth(level);
    nearer += here;
  }
  return seconds;
}

/// Least time = max(flops / FMA peak + exps / exp peak, bytes / bandwidth), in seconds. Streamed bytes move at DRAM
/// bandwidth, resident ones at that of the levels which hold them.
inline double least_seconds(const Work& work, const Peaks& peak) {
  const double compute = work.flops / peak.fma_float.per_second + work.exps / peak.exp_float.per_second;
  const double memory = work.streamed_bytes / peak.read_bandwidth(MemoryLevel::dram) +
                        least_seconds_to_move(work.resident_bytes, work.footprint_bytes, peak);
  return std::max(compute, memory);
}

/// How the state of a linear recurrence decays and what is taken out of it, and what that costs for each token.
struct Decay {
  double flops_per_channel;   // decays, bonus and scales, for each key channel
  double exps_per_channel;    // where the decay is given as a logarithm
  double streams;             // input and output rows of D numbers
  double flops_per_cell = 4;  // for each number of the state: a multiply-add for each product of a vector with it
};
inline constexpr Decay no_decay{4, 0, 4};                     // linear attention
inline constexpr Decay constant_decay{4, 0, 4};               // retention
inline constexpr Decay constant_with_bonus{5, 0, 4};          // RWKV-5
inline constexpr Decay channel_decay{5, 1, 5};                // RWKV-6, gated linear attention
inline constexpr Decay no_decay_delta{0, 0, 4, 6};            // delta rule
inline constexpr Decay token_decay_delta{8, 1.0 / 64, 4, 6};  // gated delta rule, heads of 64
inline constexpr Decay channel_decay_delta{5, 1, 5, 6};       // Kimi delta attention
inline constexpr Decay channel_decay_low_rank{0, 1, 7, 8};    // RWKV-7
// Mamba-2, 24 heads of 64 that share B and C of 128 states: those, x, dt and the output.
inline constexpr Decay shared_token_decay{0, 1.0 / 128, (2 * 24 * 64 + 2 * 128 + 24) / (24 * 128.0)};

namespace work {

/// Scores and weighted values of `pairs` pairs of query and key in each head, each with one exponential; every row of
/// query, key, value and output moves once.
inline Work attention(double pairs, double length, Index heads, Index key_value_heads, Index head_dim) {
  const double streams = 2.0 * double(heads * head_dim) + 2.0 * double(key_value_heads * head_dim);
  return {.flops = 4 * pairs * double(heads * head_dim),
          .exps = pairs * double(heads),
          .streamed_bytes = 4 * streams * length};
}

/// Exact causal attention of a whole sequence.
inline Work causal_attention(Index length, Index heads, Index key_value_heads, Index head_dim) {
  return attention(double(length) * double(length + 1) / 2, double(length), heads, key_value_heads, head_dim);
}

/// One query against a cache of `context` keys and values, which it reads once.
inline Work attention_step(Index context, Index heads, Index key_value_heads, Index head_dim) {
  Work work = attention(double(context), 0, heads, key_value_heads, head_dim);
  work.resident_bytes = work.footprint_bytes = 8.0 * double(context * key_value_heads * head_dim);
  return work;
}

/// S_t = decay * S_{t-1} + k v^T, y = q S of a whole sequence: a multiply-add for each of the two products, and for those
/// of a delta rule.
inline Work linear_recurrence(Index length, Index heads, Index key_dim, Index value_dim, const Decay& decay) {
  const double channels = double(heads * key_dim);
  return double(length) *
         Work{.flops = decay.flops_per_cell * channels * double(value_dim) + decay.flops_per_channel * channels,
              .exps = decay.exps_per_channel * channels,
              .streamed_bytes = 4 * decay.streams * channels};
}

/// The same for one token: the state, which is read and written, counts instead of the streams.
inline Work linear_recurrence_step(Index heads, Index key_dim, Index value_dim, const Decay& decay) {
  Work work = linear_recurrence(1, heads, key_dim, value_dim, decay);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * double(heads * key_dim * value_dim);
  work.resident_bytes = 2 * work.footprint_bytes;
  return work;
}

/// Gated slot attention: a recurrence over keys and slots, a softmax over slots, a recurrence over slots and values; the
/// gates of a slot are shared by both. Each has its products and a decay or scale for every channel of the key side.
inline Work gated_slot_attention(Index length, Index heads, Index key_dim, Index value_dim, Index slots) {
  const double K = double(key_dim), V = double(value_dim), M = double(slots);
  return double(length * heads) *
         Work{.flops = 4 * M * (K + V) + 5 * K + 5 * M, .exps = 2 * M, .streamed_bytes = 4 * (2 * K + 2 * V + 2 * M)};
}

/// The same for one token: both memories are read and written.
inline Work gated_slot_attention_step(Index heads, Index key_dim, Index value_dim, Index slots) {
  Work work = gated_slot_attention(1, heads, key_dim, value_dim, slots);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * double(heads * slots * (key_dim + value_dim));
  work.resident_bytes = 2 * work.footprint_bytes;
  return work;
}

/// Log-linear attention, the least over all sizes of chunk: scores and weighted values of the pairs inside a chunk, a read of
/// a memory for every set bit of a token's position above the chunk, and one addition to a memory.
inline Work log_linear_recurrence(Index length, Index heads, Index key_dim, Index value_dim) {
  const double K = double(key_dim), V = double(value_dim);
  double flops = std::numeric_limits<double>::infinity(), scales = 0;
  for (Index bits = 0; Index(1) << bits <= length; ++bits) {
    double reads = 0;
    for (Index t = 0; t < length; ++t) reads += std::popcount(std::uint64_t(t >> bits));
    if (bits == 0) scales = reads + double(length);
    const double pairs = double(length) * (double(Index(1) << bits) + 1) / 2;
    flops = std::min(flops, pairs * 2 * (K + V) + (reads + double(length)) * 2 * K * V);
  }
  const double numbers = double(length) * (2 * K + 2 * V + 1) + scales;
  return double(heads) * Work{.flops = flops, .exps = double(length), .streamed_bytes = 4 * numbers};
}

/// The same for the token at `position`, which reads a memory for each set bit and writes one.
inline Work log_linear_step(Index position, Index heads, Index key_dim, Index value_dim) {
  const double cells = double(heads * key_dim * value_dim), memories = std::popcount(std::uint64_t(position)) + 1;
  return {.flops = 2 * cells * memories,
          .exps = double(heads),
          .resident_bytes = 4 * cells * memories,
          .footprint_bytes = 4 * cells * memories};
}

/// Normalised linear attention with `features` features of queries and keys of `width` numbers: the products of an undecayed
/// recurrence (more with a delta rule), for each feature an addition to the sum of keys and a multiply-add for the denominator,
/// and one multiplication for each feature of a query and of a key.
inline Work feature_attention(Index length, Index heads, Index width, Index features, Index value_dim,
                              double flops_per_cell = no_decay.flops_per_cell) {
  const double rows = double(heads * features);
  return double(length) * Work{.flops = flops_per_cell * rows * double(value_dim) + 5 * rows,
                               .streamed_bytes = 4 * 2 * double(heads * (width + value_dim))};
}

/// The same for one token: the state, which is read and written, counts instead of the streams.
inline Work feature_attention_step(Index heads, Index width, Index features, Index value_dim,
                                   double flops_per_cell = no_decay.flops_per_cell) {
  Work work = feature_attention(1, heads, width, features, value_dim, flops_per_cell);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * double(heads * features * (value_dim + 1));
  work.resident_bytes = 2 * work.footprint_bytes;
  return work;
}

/// The same where the features are exponentials of products with random vectors.
inline Work random_feature_attention(Index length, Index heads, Index width, Index features, Index value_dim) {
  const double rows = double(length * heads * features);
  return feature_attention(length, heads, width, features, value_dim) +
         Work{.flops = 4 * rows * double(width), .exps = 2 * rows};
}

inline Work random_feature_attention_step(Index heads, Index width, Index features, Index value_dim) {
  const Work step = feature_attention_step(heads, width, features, value_dim);
  return step + Work{.flops = 4.0 * double(heads * features * width), .exps = 2.0 * double(heads * features)};
}

/// A recurrent delta net: three products of what is fed back with a matrix of the weights, and the delta rule; an exponential
/// for each channel in a tanh and in two softmaxes.
inline Work recurrent_delta_net(Index length, Index heads, Index head_dim) {
  const double channels = double(heads * head_dim);
  return double(length) *
         Work{.flops = 12 * channels * double(head_dim), .exps = 3 * channels, .streamed_bytes = 4 * 4 * channels};
}

/// The same for one token: the state, which is read and written, and the matrices count instead of the streams.
inline Work recurrent_delta_net_step(Index heads, Index head_dim) {
  Work work = recurrent_delta_net(1, heads, head_dim);
  work.streamed_bytes = 0;
  work.footprint_bytes = (1 + 3) * 4 * double(heads * head_dim * head_dim);
  work.resident_bytes = (2 + 3) * 4 * double(heads * head_dim * head_dim);
  return work;
}

/// A delta RNN: two delta rules; an exponential for each channel of four streams.
inline Work delta_rnn(Index length, Index heads, Index head_dim) {
  const double channels = double(heads * head_dim);
  return double(length) *
         Work{.flops = 12 * channels * double(head_dim), .exps = 4 * channels, .streamed_bytes = 4 * 6 * channels};
}

/// The same for one token.
inline Work delta_rnn_step(Index heads, Index head_dim) {
  Work work = delta_rnn(1, heads, head_dim);
  work.streamed_bytes = 0;
  work.footprint_bytes = 2 * 4 * double(heads * head_dim * head_dim);
  work.resident_bytes = 2 * work.footprint_bytes;
  return work;
}

/// The selective scan of Mamba-1 with softplus and gate: three multiply-adds and an exponential for every state, two
/// exponentials for every channel, which has three inputs and an output; B and C.
inline Work selective_scan(Index length, Index channels, Index states) {
  const double cells = double(channels * states);
  return double(length) * Work{.flops = 6 * cells,
                               .exps = cells + 2 * double(channels),
                               .streamed_bytes = 4 * double(4 * channels + 2 * states)};
}

/// The same for one token: the state, which is read and written, and A count instead of the streams.
inline Work selective_scan_step(Index channels, Index states) {
  Work work = selective_scan(1, channels, states);
  work.streamed_bytes = 0;
  work.resident_bytes = 12.0 * double(channels * states);
  work.footprint_bytes = 8.0 * double(channels * states);
  return work;
}

/// The WKV of RWKV-4: for each channel the exponential of the key, whose products with constants are the other weights; three
/// multiply-adds, two products, a sum and a quotient; two inputs and an output.
inline Work log_average(Index length, Index channels) {
  return double(length * channels) * Work{.flops = 10, .exps = 1, .streamed_bytes = 4 * 3};
}

/// The same for one token: the state, which is read and written, and what every channel has of its own count instead of the
/// streams.
inline Work log_average_step(Index channels) {
  Work work = log_average(1, channels);
  work.streamed_bytes = 0;
  work.resident_bytes = 4 * 8.0 * double(channels);
  work.footprint_bytes = 4 * 5.0 * double(channels);
  return work;
}

/// The real part of a Fourier transform over both axes of a real matrix: 5/2 n log2(n) operations for n real numbers.
inline Work fourier(Index length, Index channels) {
  const double numbers = double(length * channels);
  return numbers * Work{.flops = 2.5 * std::log2(numbers), .streamed_bytes = 4 * 2};
}

/// An attention-free average: for each channel an exponential of its key and one in the gate, two multiply-adds for each
/// token that has a bias (`near` of them on average), whose exponential all channels share, and two for the others.
inline Work attention_free(Index length, Index channels, double near) {
  const double D = double(channels);
  return double(length) * Work{.flops = D * (4 * near + 6), .exps = 2 * D + near, .streamed_bytes = 4 * (4 * D + near)};
}

/// The same for one token: keys and values of the near tokens, and the sums, count instead of the streams.
inline Work attention_free_step(Index channels, double near) {
  Work work = attention_free(1, channels, near);
  work.streamed_bytes = 0;
  work.exps += double(channels) * near;
  work.footprint_bytes = work.resident_bytes = 4 * double(channels) * (2 * near + 5);
  return work;
}

/// h = e^g h + x for every channel.
inline Work gated_scan(Index length, Index channels) {
  return double(length * channels) * Work{.flops = 2, .exps = 1, .streamed_bytes = 4 * 3};
}

/// A diagonal system of complex states: a complex multiplication, an addition of the input and the real part of a product,
/// the input's factor merged into the output's.
inline Work diagonal_system(Index length, Index channels, Index states) {
  return double(length * channels) * Work{.flops = 12 * double(states), .streamed_bytes = 4 * 2};
}

/// A convolution with filters as long as the sequence, by Fourier transforms: one of 2 L real numbers and one back, at
/// 5/2 n log2(n) operations each for n real numbers; the spectra stream.
inline Work long_convolution(Index length, Index channels) {
  const double L = double(length);
  return double(channels) * Work{.flops = 2 * 2.5 * 2 * L * std::log2(2 * L), .streamed_bytes = 4 * 4 * L};
}

/// Mega's damped averages: a multiply-add for the recurrence of each, the input's factor merged into the output's, and one for
/// the output; an exponential in the activation.
inline Work damped_averages(Index length, Index channels, Index averages) {
  return double(length * channels) * Work{.flops = 4 * double(averages) + 2, .exps = 1, .streamed_bytes = 4 * 2};
}

/// A short causal convolution of `width` taps, with silu or without: kernels that wait for memory have time for it.
inline Work short_convolution(Index length, Index channels, Index width) {
  return double(length * channels) * Work{.flops = 2 * double(width), .streamed_bytes = 4 * 2};
}

/// Mamba-3: query and key of one group, angles, values, output and three numbers for each head; the recurrence, and rotations of
/// queries and keys.
inline Work mamba3(Index length, Index heads, Index state_dim, Index head_dim, Index angles) {
  const double H = double(heads), N = double(state_dim), P = double(head_dim), S = double(angles);
  return double(length) * Work{.flops = H * (4 * N * P + 12 * S),
                               .exps = H * (2 + 2 * S) + S,
                               .streamed_bytes = 4 * (2 * N + S + 2 * H * P + 3 * H)};
}

/// x [rows, inputs] times a weight matrix [outputs, inputs]: the weights stay in cache, the rows stream.
inline Work projection(double rows, double inputs, double outputs) {
  const double bytes = 4 * (inputs * outputs + (rows > 1 ? rows * (inputs + outputs) : 0));
  return {.flops = 2 * rows * inputs * outputs, .streamed_bytes = 0, .resident_bytes = bytes, .footprint_bytes = bytes};
}

}  // namespace work
}  // namespace seqmix::bench
