// Language models of Mamba-1 and Mamba-2: what stands around the mixers that the library has.
//
//   Source    Gu, Dao 2023, arXiv:2312.00752; Dao, Gu 2024, arXiv:2405.21060; state-spaces/mamba,
//             mamba_ssm/models/mixer_seq_simple.py
//   Layout    the published names: backbone.embedding.weight (or embeddings), backbone.layers.<i>.norm.weight,
//             backbone.layers.<i>.mixer.*, backbone.norm_f.weight, lm_head.weight (without it, the embedding is the head)
//
//     x = embedding[token]
//     per layer:  x += mixer(rms(x) w)
//     logits = head (rms(x) w)
//
// A mixer with x_proj.weight is one of Mamba-1. A checkpoint says most sizes by the shapes of its tensors. What it doesn't,
// stands in its metadata, as in the authors' ssm_cfg: of Mamba-2 ngroups (1 where it is missing) and norm_before_gate (false).
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/io/safetensors.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/ssm/mamba.hpp>
#include <seqmix/ssm/mamba2.hpp>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mamba {

using namespace seqmix;

/// The text of the file's metadata at `key`; empty where there is none.
inline std::string metadata(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? "" : found->second.substr(0, 100);
}

/// The configuration that follows from the weights of a layer: in_proj has 2 inner + 2 G N + H rows, the convolution all but
/// those of dt and the gates. Wrong shapes are left to the mixer to refuse.
template <class T>
typename Mamba2<T>::Config config_of(const typename Mamba2<T>::Weights& weights, Index channels, Index groups,
                                     bool norm_before_gate) {
  const Index heads = weights.dt_bias.size(), inner = weights.output.cols();
  const Index shared = weights.input.rows() - 2 * inner - heads;  // B and C
  typename Mamba2<T>::Config config;
  config.channels = channels;
  config.inner_channels = inner;
  config.ssm_channels = weights.convolution.rows() - shared;
  expect(heads > 0 && config.ssm_channels > 0 && groups > 0, "mamba2", "in_proj.weight",
         "has a shape that fits no state space");
  config.head_dim = config.ssm_channels / heads;
  config.state_dim = shared / (2 * groups);
  config.groups = groups;
  config.convolution_width = weights.convolution.cols();
  config.convolution_bias = weights.convolution_bias.size() > 0;
  config.bias = weights.input_bias.size() > 0;
  config.skip_by_channel = weights.d.size() != heads;
  config.norm = weights.norm.size() > 0;
  config.norm_before_gate = norm_before_gate;
  config.learned_initial_state = weights.initial_state.size() > 0;
  return config;
}

/// The same of Mamba-1: in_proj has 2 E rows, dt_proj as many columns as the time constants have rank.
template <class T>
typename Mamba<T>::Config config_of(const typename Mamba<T>::Weights& weights, Index channels) {
  const Index inner = weights.output.cols();
  expect(inner > 0 && inner % channels == 0, "mamba", "out_proj.weight", "has a shape that fits no state space");
  typename Mamba<T>::Config config;
  config.channels = channels;
  config.expand = inner / channels;
  config.state_dim = weights.log_decay.cols();
  config.convolution_width = weights.convolution.cols();
  config.delta_rank = weights.delta.cols();
  config.convolution_bias = weights.convolution_bias.size() > 0;
  config.bias = weights.input_bias.size() > 0;
  return config;
}

/// A whole model. Immutable, like a mixer: states are values, scratch comes from the caller's workspace.
template <std::floating_point T>
class Model {
 public:
  using Scalar = T;
  using Mixer = std::variant<Mamba<T>, Mamba2<T>>;
  using State = std::vector<std::variant<typename Mamba<T>::State, typename Mamba2<T>::State>>;

  /// Throws SafetensorsError, naming file and tensor, if the file lacks tensors or holds them with wrong shapes.
  explicit Model(const SafetensorsFile& file) {
    describe(file, "", [&] {
      const bool plural = file.contains("backbone.embeddings.weight");
      embedding_ = file.matrix<T>(plural ? "backbone.embeddings.weight" : "backbone.embedding.weight");
      expect(vocabulary() > 0 && channels() > 0, "model", "embedding.weight", "is empty");
      last_norm_ = norm(file, "backbone.norm_f.weight");
      const bool tied = !file.contains("lm_head.weight");
      const Matrix<T> head = tied ? embedding_ : file.matrix<T>("lm_head.weight");
      expect_tensor("model", "lm_head.weight", {vocabulary(), channels()}, head);
      head_ = Linear<T>(head);
    });
    const Index groups = group_count(file);
    const bool norm_before_gate = metadata(file, "norm_before_gate") == "true";
    for (Index index = 0;; ++index) {
      const std::string prefix = "backbone.layers." + std::to_string(index) + ".";
      if (!file.contains(prefix + "norm.weight")) break;
      describe(file, prefix, [&] {
        const std::string mixer = prefix + "mixer.";
        const auto load = [&](auto weights, const auto& make) {
          load_weights(weights, file, mixer);
          layers_.push_back({norm(file, prefix + "norm.weight"), make(weights)});
        };
        if (file.contains(mixer + "x_proj.weight")) {
          load(typename Mamba<T>::Weights(),
               [&](const auto& weights) { return Mamba<T>(config_of<T>(weights, channels()), weights); });
        } else {
          load(typename Mamba2<T>::Weights(), [&](const auto& weights) {
            return Mamba2<T>(config_of<T>(weights, channels(), groups, norm_before_gate), weights);
          });
        }
      });
    }
    if (layers_.empty()) throw SafetensorsError(file.path() + ": has no tensor backbone.layers.0.norm.weight");
  }

  Index channels() const { return embedding_.cols(); }
  Index vocabulary() const { return embedding_.rows(); }
  Index layers() const { return Index(layers_.size()); }

  State initial_state() const {
    State state;
    for (const Layer& layer : layers_) {
      std::visit([&](const auto& mixer) { state.emplace_back(mixer.initial_state()); }, layer.mixer);
    }
    return state;
  }

  /// Bytes of the numbers in `state`.
  static std::size_t state_bytes(const State& state) {
    std::size_t total = 0;
    const auto add = [&](std::string_view, const auto& field) { total += field.size() * sizeof(field[0]); };
    for (const auto& layer : state) std::visit([&](const auto& fields) { visit_fields(fields, add); }, layer);
    return total;
  }

  /// Reads the next tokens of a text by the parallel path. logits [tokens.size(), vocabulary()] after every token, or
  /// [1, vocabulary()] after the last one only. Throws std::invalid_argument, with `state` as it was, on tokens outside
  /// the vocabulary and on wrong shapes.
  void prefill(State& state, std::span<const Index> tokens, Sequence<T> logits, Workspace& workspace) const {
    const Index length = Index(tokens.size());
    for (const Index token : tokens) expect(token >= 0 && token < vocabulary(), "model", "tokens", "unknown token");
    expect(state.size() == layers_.size(), "model", "state", "belongs to another model");
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      expect(state[i].index() == layers_[i].mixer.index(), "model", "state", "belongs to another model");
    }
    if (logits.length() != 1 || length == 0) expect_shape("model", "logits", {length, vocabulary()}, logits);
    expect_shape("model", "logits", {logits.length(), vocabulary()}, logits);
    if (length == 0) return;

    const auto frame = workspace.frame();
    const auto x = workspace.sequence<T>(length, channels());
    const auto normal = workspace.sequence<T>(length, channels());
    const auto mixed = workspace.sequence<T>(length, channels());
    for (Index t = 0; t < length; ++t) {
      std::copy_n(embedding_.row(tokens[std::size_t(t)]).data(), channels(), x.row(t));
    }
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      normalize(x, layers_[i].norm, normal);
      const auto mix = [&]<class M>(const M& mixer) {
        mixer.prefill(std::get<typename M::State>(state[i]), normal, mixed, workspace);
      };
      std::visit(mix, layers_[i].mixer);
      for (Index t = 0; t < length; ++t) {
        for (Index c = 0; c < channels(); ++c) x.row(t)[c] += mixed.row(t)[c];
      }
    }
    const auto asked = x.rows(length - logits.length(), logits.length());
    const auto last = normal.rows(0, logits.length());
    normalize(asked, last_norm_, last);
    head_.apply(last, logits, workspace);
  }

  /// Reads the next token by the recurrent path. logits [vocabulary()]. Throws as prefill does.
  void step(State& state, Index token, Token<T> logits, Workspace& workspace) const {
    prefill(state, std::span<const Index>(&token, 1), logits, workspace);
  }

 private:
  struct Layer {
    Vector<T> norm;  // [channels]
    Mixer mixer;
  };

  Vector<T> norm(const SafetensorsFile& file, const std::string& name) const {
    Vector<T> weight = file.vector<T>(name);
    expect_tensor("model", name, {channels()}, weight);
    return weight;
  }

  static void normalize(ConstSequence<T> x, const Vector<T>& weight, Sequence<T> y) {
    for (Index t = 0; t < x.length(); ++t) std::copy_n(x.row(t), x.channels(), y.row(t));
    rms_normalize(y.heads(1), T(1e-5), weight);
  }

  /// Calls `load`, and says in what it throws of wrong shapes which file and which part of the model it was.
  template <class Load>
  static void describe(const SafetensorsFile& file, const std::string& part, Load load) {
    try {
      load();
    } catch (const std::invalid_argument& error) {
      throw SafetensorsError(file.path() + ": " + part + (part.empty() ? "" : " ") + error.what());
    }
  }

  static Index group_count(const SafetensorsFile& file) {
    const std::string text = metadata(file, "ngroups");
    if (text.empty()) return 1;
    Index count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc() || end != text.data() + text.size() || count < 1) {
      throw SafetensorsError(file.path() + ": ngroups in the metadata is wrong: \"" + text + "\"");
    }
    return count;
  }

  Matrix<T> embedding_;  // [vocabulary, channels]
  Vector<T> last_norm_;  // [channels]
  Linear<T> head_;
  std::vector<Layer> layers_;
};

}  // namespace mamba
