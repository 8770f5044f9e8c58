// RWKV language models, versions 4 to 7: what stands around the time mixing that the library has.
//
//   Source    Peng et al. 2023, arXiv:2305.13048; Peng et al. 2024, arXiv:2404.05892; Peng et al. 2025, arXiv:2503.14456;
//             BlinkDL/RWKV-LM, RWKV-v4/src/model.py, RWKV-v5/src/model.py, RWKV-v7/rwkv_v7_demo.py
//   Layout    BlinkDL's parameter names; the file's metadata gives architecture ("rwkv5"), version ("5.2") and n_layer
//
//     x = ln0(embedding[token])
//     per block:  x += time_mixing(ln1(x));  x += channel_mixing(ln2(x))
//     logits = head ln_out(x)
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/io/safetensors.hpp>
#include <seqmix/parts/feature_map.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/token_shift.hpp>
#include <seqmix/recurrent/rwkv4.hpp>
#include <seqmix/recurrent/rwkv5.hpp>
#include <seqmix/recurrent/rwkv6.hpp>
#include <seqmix/recurrent/rwkv7.hpp>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace rwkv {

using namespace seqmix;

/// Layer norm over the channels with eps 1e-5.
template <class T>
struct LayerNorm {
  Vector<T> weight, bias;  // [channels]

  static void visit(auto& self, auto&& visitor) {
    visitor("weight", self.weight, Presence::required);
    visitor("bias", self.bias, Presence::required);
  }
  void check(Index channels) const {
    expect_tensor("layer norm", "weight", {channels}, weight);
    expect_tensor("layer norm", "bias", {channels}, bias);
  }
  void apply(ConstSequence<T> x, Sequence<T> y) const { layer_normalize(x, y, T(1e-5), weight, bias); }
};

/// How versions 4 and 5 mix a token with the one before it: x * mix + previous * (1 - mix).
struct InterpolationShift {
  static constexpr std::string_view key_name = "time_mix_k", receptance_name = "time_mix_r";
  static constexpr bool receptance = true;

  template <class T>
  static void apply(ConstSequence<T> x, ConstSequence<T> previous, ConstToken<T> mix, Sequence<T> output) {
    interpolate_tokens(x, previous, mix, output);
  }
};

/// How version 6 does: x + (previous - x) * mix.
struct DifferenceShift {
  static constexpr std::string_view key_name = "time_maa_k", receptance_name = "time_maa_r";
  static constexpr bool receptance = true;

  template <class T>
  static void apply(ConstSequence<T> x, ConstSequence<T> previous, ConstToken<T> mix, Sequence<T> output) {
    subtract_tokens(previous, x, output);
    add_difference(x, output, mix, output);
  }
};

/// Version 7: as version 6, under another name, and without a receptance.
struct KeyDifferenceShift : DifferenceShift {
  static constexpr std::string_view key_name = "x_k", receptance_name = "";
  static constexpr bool receptance = false;
};

/// The feed-forward half of a block; a recurrent mixer too, as each token sees the one before it:
///     y = sigmoid(Wr shift_r(x)) * (Wv max(Wk shift_k(x), 0)^2), without the sigmoid where there is no receptance
template <std::floating_point T, class Shift>
class ChannelMixing : public RecurrentMixerBase<ChannelMixing<T, Shift>, T> {
 public:
  static constexpr std::string_view name = "rwkv_channel_mixing";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
  };
  struct Weights {
    Vector<T> key_mix, receptance_mix;  // [channels]
    Matrix<T> key;                      // [hidden, channels]
    Matrix<T> value;                    // [channels, hidden]
    Matrix<T> receptance;               // [channels, channels]

    static void visit(auto& self, auto&& visitor) {
      visitor(Shift::key_name, self.key_mix, Presence::required);
      visitor("key.weight", self.key, Presence::required);
      visitor("value.weight", self.value, Presence::required);
      if constexpr (Shift::receptance) {
        visitor(Shift::receptance_name, self.receptance_mix, Presence::required);
        visitor("receptance.weight", self.receptance, Presence::required);
      }
    }
  };
  struct State {
    Tensor<T> last;  // [channels], the token before

    static void visit(auto& self, auto&& visitor) { visitor("x_prev", self.last); }
  };

  ChannelMixing(Config config, const Weights& weights)
      : channels_(config.channels), key_mix_(weights.key_mix), receptance_mix_(weights.receptance_mix) {
    const Index hidden = weights.key.rows();
    expect_tensor(name, Shift::key_name, {channels_}, weights.key_mix);
    expect_tensor(name, "key.weight", {hidden, channels_}, weights.key);
    expect_tensor(name, "value.weight", {channels_, hidden}, weights.value);
    key_ = Linear<T>(weights.key);
    value_ = Linear<T>(weights.value);
    if constexpr (Shift::receptance) {
      expect_tensor(name, Shift::receptance_name, {channels_}, weights.receptance_mix);
      expect_tensor(name, "receptance.weight", {channels_, channels_}, weights.receptance);
      receptance_ = Linear<T>(weights.receptance);
    }
  }

  Index channels() const { return channels_; }
  State initial_state() const { return {Tensor<T>({channels_})}; }
  void check_state(const State& state) const { expect_shape(name, "x_prev", {channels_}, state.last.shape()); }

  void advance(SequenceBatch<State> batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto previous = workspace.sequence<T>(x.length(), channels_);
    const auto shifted = workspace.sequence<T>(x.length(), channels_);
    previous_tokens<T>(batch, &State::last, x, previous);
    Shift::template apply<T>(x, previous, key_mix_, shifted);
    const auto hidden = key_.apply(shifted, workspace);
    apply_activation(hidden, feature_map::SquaredRelu());
    value_.apply(hidden, y, workspace);
    if constexpr (Shift::receptance) {
      Shift::template apply<T>(x, previous, receptance_mix_, shifted);
      multiply_sigmoid<T>(y, receptance_.apply(shifted, workspace));
    }
    keep_last_tokens(batch, &State::last, x);
  }

 private:
  Index channels_;
  Vector<T> key_mix_, receptance_mix_;
  Linear<T> key_, value_, receptance_;
};

/// What differs between the versions, other than the time mixing itself. configure sets what the time mixing of a block
/// has to be told beside its widths.
template <class TimeMixing>
struct VersionOf;

template <class T>
struct VersionOf<Rwkv4<T>> {
  using Shift = InterpolationShift;

  static void configure(typename Rwkv4<T>::Config&, const typename Rwkv4<T>::Weights&, Index) {}
};

template <class T>
struct VersionOf<Rwkv5<T>> {
  using Shift = InterpolationShift;
  static constexpr std::string_view head_tensor = "att.time_decay";  // its first size is the number of heads
  static constexpr double time_mixing_eps = 1e-5;                    // on the undivided sum, as RWKV/rwkv.cpp has it

  static void configure(typename Rwkv5<T>::Config&, const typename Rwkv5<T>::Weights&, Index) {}
};

template <class T>
struct VersionOf<Rwkv6<T>> {
  using Shift = DifferenceShift;
  static constexpr std::string_view head_tensor = "att.time_faaaa";
  static constexpr double time_mixing_eps = 64e-5;

  static void configure(typename Rwkv6<T>::Config& config, const typename Rwkv6<T>::Weights& weights, Index) {
    config.mix_rank = weights.mix_down.cols() / Index(Rwkv6<T>::inputs.size());
    config.decay_rank = weights.decay_down.cols();
  }
};

template <class T>
struct VersionOf<Rwkv7<T>> {
  using Shift = KeyDifferenceShift;
  static constexpr std::string_view head_tensor = "att.r_k";
  static constexpr double time_mixing_eps = 64e-5;

  static void configure(typename Rwkv7<T>::Config& config, const typename Rwkv7<T>::Weights& weights, Index block) {
    config.inner = block > 0;
    config.decay_rank = weights.decay_down.cols();
    config.rate_rank = weights.rate_down.cols();
    config.value_rank = weights.value_down.cols();
    config.gate_rank = weights.gate_down.cols();
  }
};

/// Whether the layers after the first are given the values of the first.
template <class TimeMixing>
concept PassesValues =
    requires(const TimeMixing& layer, typename TimeMixing::State& state, Sequence<typename TimeMixing::Scalar> rows,
             Workspace& workspace) { layer.prefill(state, rows, rows, rows, workspace); };

/// A whole model, with Rwkv4<T>, Rwkv5<T>, Rwkv6<T> or Rwkv7<T> in its blocks. Immutable, like a mixer: states are values, scratch comes from the
/// caller's workspace.
template <class TimeMixing>
class Model {
 public:
  using T = typename TimeMixing::Scalar;
  using Scalar = T;
  using Version = VersionOf<TimeMixing>;
  using Feedforward = ChannelMixing<T, typename Version::Shift>;

  struct BlockState {
    typename TimeMixing::State time;
    typename Feedforward::State channel;
  };
  using State = std::vector<BlockState>;

  /// Throws SafetensorsError, naming file and tensor, if the file lacks tensors or holds them with wrong shapes.
  explicit Model(const SafetensorsFile& file) {
    const Index blocks = block_count(file);
    embedding_ = file.matrix<T>("emb.weight");
    LayerNorm<T> first_norm;
    Matrix<T> head;
    describe(file, "", [&] {
      expect(vocabulary() > 0 && channels() > 0, "model", "emb.weight", "is empty");
      load_weights(first_norm, file, "blocks.0.ln0.");
      first_norm.check(channels());
      load_weights(last_norm_, file, "ln_out.");
      last_norm_.check(channels());
      head = file.matrix<T>("head.weight");
      expect_tensor("model", "head.weight", {vocabulary(), channels()}, head);
    });
    first_norm.apply(embedding_, embedding_);  // once and for all, as it comes straight after the embedding
    head_ = Linear<T>(head);
    for (Index index = 0; index < blocks; ++index) blocks_.emplace_back(file, index, channels());
  }

  Index channels() const { return embedding_.cols(); }
  Index vocabulary() const { return embedding_.rows(); }
  Index layers() const { return Index(blocks_.size()); }

  State initial_state() const {
    State state;
    for (const Block& block : blocks_) {
      state.push_back({block.time_mixing.initial_state(), block.channel_mixing.initial_state()});
    }
    return state;
  }

  /// Bytes of the numbers in `state`.
  static std::size_t state_bytes(const State& state) {
    std::size_t total = 0;
    const auto add = [&](std::string_view, const auto& field) {
      if constexpr (requires { field.size(); }) {
        total += field.size() * sizeof(field[0]);
      } else {
        total += sizeof(field);
      }
    };
    for (const BlockState& block : state) {
      visit_fields(block.time, add);
      visit_fields(block.channel, add);
    }
    return total;
  }

  /// Reads the next tokens of a text by the parallel path. logits [tokens.size(), vocabulary()] after every token, or
  /// [1, vocabulary()] after the last one only. Throws std::invalid_argument, with `state` as it was, on tokens outside
  /// the vocabulary and on wrong shapes.
  void prefill(State& state, std::span<const Index> tokens, Sequence<T> logits, Workspace& workspace) const {
    const Index length = Index(tokens.size());
    for (const Index token : tokens) expect(token >= 0 && token < vocabulary(), "model", "tokens", "unknown token");
    expect(state.size() == blocks_.size(), "model", "state", "belongs to another model");
    if (logits.length() != 1 || length == 0) expect_shape("model", "logits", {length, vocabulary()}, logits);
    expect_shape("model", "logits", {logits.length(), vocabulary()}, logits);
    if (length == 0) return;

    const auto frame = workspace.frame();
    const auto x = workspace.sequence<T>(length, channels());
    const auto normal = workspace.sequence<T>(length, channels());
    const auto mixed = workspace.sequence<T>(length, channels());
    Sequence<T> first_value;
    if constexpr (PassesValues<TimeMixing>) {
      first_value = workspace.sequence<T>(length, blocks_.front().time_mixing.config().attention_channels);
    }
    for (Index t = 0; t < length; ++t) {
      std::copy_n(embedding_.row(tokens[std::size_t(t)]).data(), channels(), x.row(t));
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      block.time_norm.apply(x, normal);
      if constexpr (PassesValues<TimeMixing>) {
        block.time_mixing.prefill(state[i].time, normal, first_value, mixed, workspace);
      } else {
        block.time_mixing.prefill(state[i].time, normal, mixed, workspace);
      }
      add(mixed, x);
      block.channel_norm.apply(x, normal);
      block.channel_mixing.prefill(state[i].channel, normal, mixed, workspace);
      add(mixed, x);
    }
    const auto asked = x.rows(length - logits.length(), logits.length());
    last_norm_.apply(asked, asked);
    head_.apply(asked, logits, workspace);
  }

  /// Reads the next token by the recurrent path. logits [vocabulary()]. Throws as prefill does.
  void step(State& state, Index token, Token<T> logits, Workspace& workspace) const {
    prefill(state, std::span<const Index>(&token, 1), logits, workspace);
  }

 private:
  struct Block {
    LayerNorm<T> time_norm, channel_norm;
    TimeMixing time_mixing;
    Feedforward channel_mixing;

    Block(const SafetensorsFile& file, Index index, Index channels)
        : Block(file, "blocks." + std::to_string(index) + ".", index, channels) {}

   private:
    Block(const SafetensorsFile& file, const std::string& prefix, Index index, Index channels)
        : time_mixing(load_time_mixing(file, prefix, index, channels)),
          channel_mixing(load_channel_mixing(file, prefix, channels)) {
      describe(file, prefix, [&] {
        load_weights(time_norm, file, prefix + "ln1.");
        load_weights(channel_norm, file, prefix + "ln2.");
        time_norm.check(channels);
        channel_norm.check(channels);
      });
    }
  };

  static TimeMixing load_time_mixing(const SafetensorsFile& file, const std::string& prefix, Index block,
                                     Index channels) {
    return describe(file, prefix + "att", [&] {
      typename TimeMixing::Weights weights;
      load_weights(weights, file, prefix + "att.");
      typename TimeMixing::Config config;
      config.channels = channels;
      config.attention_channels = file.matrix<T>(prefix + "att.key.weight").rows();
      if constexpr (requires { config.heads; }) {
        const auto& heads = file.tensor(prefix + std::string(Version::head_tensor)).shape;
        config.heads = heads.empty() ? 1 : heads.front();
        config.norm_eps = T(Version::time_mixing_eps);
      }
      Version::configure(config, weights, block);
      return TimeMixing(config, std::move(weights));
    });
  }

  static Feedforward load_channel_mixing(const SafetensorsFile& file, const std::string& prefix, Index channels) {
    return describe(file, prefix + "ffn", [&] {
      typename Feedforward::Weights weights;
      load_weights(weights, file, prefix + "ffn.");
      return Feedforward({.channels = channels}, weights);
    });
  }

  /// Calls `load`, and says in what it throws of wrong shapes which file and which part of the model it was.
  template <class Load>
  static auto describe(const SafetensorsFile& file, const std::string& part, Load load) {
    try {
      return load();
    } catch (const std::invalid_argument& error) {
      throw SafetensorsError(file.path() + ": " + part + (part.empty() ? "" : ": ") + error.what());
    }
  }

  static Index block_count(const SafetensorsFile& file) {
    const auto found = file.metadata().find("n_layer");
    const std::string text = found == file.metadata().end() ? "" : found->second;
    Index count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    // Every block has tensors of its own, so a file can't have more blocks than tensors.
    if (error != std::errc() || end != text.data() + text.size() || count < 1 || count > Index(file.names().size())) {
      throw SafetensorsError(file.path() + ": n_layer in the metadata is missing or wrong: \"" + text.substr(0, 100) +
                             "\"");
    }
    return count;
  }

  static void add(ConstSequence<T> source, Sequence<T> x) {
    for (Index t = 0; t < x.length(); ++t) {
      for (Index c = 0; c < x.channels(); ++c) x.row(t)[c] += source.row(t)[c];
    }
  }

  Matrix<T> embedding_;  // [vocabulary, channels], normalised
  LayerNorm<T> last_norm_;
  Linear<T> head_;
  std::vector<Block> blocks_;
};

/// A model of any version that is known.
template <std::floating_point T>
using AnyModel = std::variant<Model<Rwkv4<T>>, Model<Rwkv5<T>>, Model<Rwkv6<T>>, Model<Rwkv7<T>>>;

/// Loads a checkpoint, of the version that its metadata names. Throws SafetensorsError on other versions, and as Model
/// does.
template <std::floating_point T>
AnyModel<T> load_model(const SafetensorsFile& file) {
  const auto entry = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string("(none)") : found->second.substr(0, 100);
  };
  const std::string version = entry("architecture") + " " + entry("version");
  if (version == "rwkv4 4.0") return Model<Rwkv4<T>>(file);
  for (const char* known : {"rwkv5 5.0", "rwkv5 5.1", "rwkv5 5.2"}) {
    if (version == known) return Model<Rwkv5<T>>(file);
  }
  if (version == "rwkv6 6.0") return Model<Rwkv6<T>>(file);
  if (version == "rwkv7 7.0") return Model<Rwkv7<T>>(file);
  throw SafetensorsError(
      file.path() + ": architecture and version \"" + version +
      "\" are unknown; supported are rwkv4 4.0, rwkv5 5.0, rwkv5 5.1, rwkv5 5.2, rwkv6 6.0, rwkv7 7.0");
}

}  // namespace rwkv
