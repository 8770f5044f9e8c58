// Multiresolution convolution: a learned wavelet transform, and a learned sum of what it has in memory.
//
//   Source    Shi et al. 2023, arXiv:2305.01638; thjashin/multires-conv, layers/multireslayer.py (MultiresLayer)
//   Glossary  L length   D channels   K taps   N levels   m memory size
//   Engine    engine/dilated_cascade.hpp
//
//   lo_0 = x,   hi_i = h1 * lo_i,   lo_{i+1} = h0 * lo_i,   * a causal convolution of dilation 2^i, i < N
//   fading:    y = gelu(w[0] lo_N + sum over i of w[N - i] hi_i + w[m] x),   m = N + 1
//   uniform:   y = gelu(w[0] lo_N + sum over i and r < n_i of w[o_i + r] hi_{i, t - r 2^(i+1)} + w[m] x)
//              with blocks of the coarsest level first, n_{N-1} = 1, n_{i-1} = 2 (n_i - 1) + K, until m are full
//
// One order for sequences and tokens: the bits of a row do not depend on how a sequence is cut.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/dilated_cascade.hpp>
#include <seqmix/parts/gate.hpp>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// Which coefficients are summed: the newest of every level, or as many as fit a memory.
enum class WaveletMemory { fading, uniform };

/// The layer.
template <std::floating_point T>
class MultiresConv : public RecurrentMixerBase<MultiresConv<T>, T> {
 public:
  static constexpr std::string_view name = "multires_conv";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index kernel_size = 2;  ///< K
    Index depth = 0;        ///< N, at most 40; log2(L / (K - 1) + 1) levels see L tokens
    WaveletMemory memory = WaveletMemory::fading;
    Index memory_size = 0;  ///< m of a uniform memory, at least 2

    Index size() const { return memory == WaveletMemory::fading ? depth + 1 : memory_size; }
  };

  struct Weights {
    Matrix<T> low, high;  // h0, h1 [D, K]; the last column meets the current token
    Matrix<T> weight;     // w [D, m + 1]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("h0", self.low, Presence::required);
      visitor("h1", self.high, Presence::required);
      visitor("w", self.weight, Presence::required);
    }
  };

  struct State {
    Index position = 0;  // tokens seen
    Tensor<T> past;      // [cache lines of channels, rows, numbers of a line], see DilatedCascade

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("position", self.position), visitor("past", self.past);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  MultiresConv(const Config& config, const Weights& weights) : config_(config) {
    check(config);
    expect_tensor(name, "h0", {config.channels, config.kernel_size}, weights.low);
    expect_tensor(name, "h1", {config.channels, config.kernel_size}, weights.high);
    expect_tensor(name, "w", {config.channels, config.size() + 1}, weights.weight);
    std::vector<CascadeLevel> levels(static_cast<std::size_t>(config.depth));
    Index next = 1, reads = 1;
    for (auto level = levels.rbegin(); level != levels.rend() && next < config.size(); ++level) {
      *level = {std::min(reads, config.size() - next), next};
      next += level->reads;
      if (config.memory == WaveletMemory::uniform) reads = 2 * (reads - 1) + config.kernel_size;
    }
    cascade_ = DilatedCascade<T>(weights.low, weights.high, weights.weight, levels);
  }

  /// The authors': filters uniform in +-K^-1/2, w in +-(m + 1)^-1/2.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const double limit = std::pow(double(config.kernel_size), -0.5);
    const Matrix<T> low = uniform_matrix<T>(config.channels, config.kernel_size, limit, rng);
    const Matrix<T> high = uniform_matrix<T>(config.channels, config.kernel_size, limit, rng);
    const Index columns = config.size() + 1;
    return {low, high, uniform_matrix<T>(config.channels, columns, std::pow(double(columns), -0.5), rng)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: zeros, for each channel K 2^N of them, or less than m 2^N more.
  State initial_state() const { return {0, Tensor<T>(cascade_.state_shape())}; }

  /// Throws std::invalid_argument unless the state has this mixer's shape.
  void check_state(const State& state) const {
    expect_shape(name, "state.past", cascade_.state_shape(), state.past.shape());
    expect(state.position >= 0, name, "state.position", "must not be negative");
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      State& state = batch.state(b);
      cascade_.run(state.past.data(), state.position, rows(x), rows(y), workspace);
      state.position += batch.length(b);
    }
    workspace.for_row_blocks(y.length(), [&](Index begin, Index count) { apply_gelu(y.rows(begin, count)); });
  }

 private:
  static void check(const Config& config) {
    expect(config.channels > 0 && config.kernel_size > 0, name, "config.channels",
           "must be positive, as must kernel_size");
    expect(config.depth > 0 && config.depth <= 40, name, "config.depth", "must be 1 to 40");
    expect(config.size() >= 2, name, "config.memory_size", "must be at least 2");
  }

  Config config_;
  DilatedCascade<T> cascade_;
};

static_assert(RecurrentMixer<MultiresConv<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
