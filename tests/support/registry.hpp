// The mixers under test. A mixer registers itself from tests/operators/<operator>.cpp, and laws, allocation and thread
// checks, comparison with its naive reference and golden cases apply without further code:
//
//   #include "support/golden.hpp"
//   #include "support/reference.hpp"
//   #include "support/registry.hpp"
//
//   namespace seqmix::test {
//   namespace {
//
//   struct RetentionTests {
//     static constexpr const char* name = "retention";        // add what tells variants apart: "retention, gelu gate"
//     template <class T>
//     using Mixer = seqmix::Retention<T>;
//
//     // Small and odd: 1 head, head_dim 1, 3, 5, 8, 16, 64, heads 1 .. 5, value_dim != key_dim, every option once.
//     // Called with the same numbers for float and double: the same configurations in the same order.
//     template <class T>
//     static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
//       return {{"one head of 8", {.channels = 8, .heads = 1}},
//               {"three heads of 5", {.channels = 15, .heads = 3}},
//               {"random", {.channels = 4 * rng.integer(1, 9), .heads = 4}}};
//     }
//
//     // The equations of the paper, in double, without the library: see support/reference.hpp. Where x holds NaN or
//     // infinity, what this gives must do so too: leave masked terms out instead of multiplying them by zero.
//     static Matrix<double> reference(const Mixer<double>::Config& config, const Mixer<double>::Weights& weights,
//                                     const Matrix<double>& x);
//
//     // Optional. Weights to test with; without it Mixer<double>::random_weights(config, rng) plus noise, so that
//     // nothing is left at zero or one.
//     static Mixer<double>::Weights weights(const Mixer<double>::Config& config, Rng& rng);
//   };
//
//   const MixerRegistration<RetentionTests> mixer;
//   const GoldenRegistration<RetentionCoreGolden> core{"retention", "core"};       // see support/golden.hpp
//   const GoldenRegistration<RetentionLayerGolden> layer{"retention", "layer"};
//
//   }  // namespace
//   }  // namespace seqmix::test
//
// A mixer whose type has further parameters (an activation, a direction) registers one such struct for each.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <seqmix/core/random.hpp>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "any_mixer.hpp"
#include "fields.hpp"
#include "scalars.hpp"

namespace seqmix::test {

/// A configuration to test, and what to call it in messages.
template <class M>
struct Configuration {
  std::string name;
  typename M::Config config;
};

/// One mixer of the registry in one configuration.
template <class T>
struct MixerCase {
  std::string configuration;
  std::unique_ptr<AnyMixer<T>> mixer;
  std::function<Matrix<double>(const Matrix<double>& x)> exact;  // by the same mixer with the same weights, in double
  std::function<Matrix<double>(const Matrix<double>& x)> reference;  // the naive reference; empty where there is none
};

/// A mixer in one configuration with weights to test it with, whatever its type.
class MixerSetup {
 public:
  virtual ~MixerSetup() = default;
  virtual std::string configuration() const = 0;
  virtual TensorList weights() = 0;  ///< in double; changing them changes what is made from now on
  virtual std::unique_ptr<AnyMixer<float>> make_float() = 0;    ///< null where float is not tested
  virtual std::unique_ptr<AnyMixer<double>> make_double() = 0;  ///< null where double is not tested
  virtual bool refuses_no_channels() const = 0;  ///< whether random_weights does, where a configuration has channels
  virtual bool has_reference() const = 0;
  virtual Matrix<double> reference(const Matrix<double>& x) const = 0;
};

/// What the registry knows of one mixer.
struct MixerEntry {
  std::string name;
  Index (*configurations)();
  std::unique_ptr<MixerSetup> (*setup)(Index configuration);

  /// The mixer with weights that T represents exactly.
  template <class T>
  MixerCase<T> make(Index configuration) const;
};

extern template MixerCase<float> MixerEntry::make<float>(Index) const;
extern template MixerCase<double> MixerEntry::make<double>(Index) const;

/// All registered mixers, in no particular order.
std::vector<MixerEntry>& mixer_registry();

/// Seed of everything random in the tests.
inline constexpr std::uint64_t test_seed = 20240923;

namespace detail {

template <class Tests>
class SetupOf final : public MixerSetup {
 public:
  template <class T>
  using Mixer = typename Tests::template Mixer<T>;

  static Index count() { return Index(configurations<double>().size()); }
  static std::unique_ptr<MixerSetup> make(Index which) { return std::make_unique<SetupOf>(which); }

  explicit SetupOf(Index which) : which_(which), chosen_(configurations<double>().at(std::size_t(which))) {
    Rng rng(test_seed + 1 + std::uint64_t(which));
    if constexpr (requires { Tests::weights(chosen_.config, rng); }) {
      weights_ = Tests::weights(chosen_.config, rng);
    } else {
      weights_ = Mixer<double>::random_weights(chosen_.config, rng);
      stir(weights_, rng);
    }
  }

  std::string configuration() const override { return chosen_.name; }
  TensorList weights() override { return tensors_of(weights_); }
  std::unique_ptr<AnyMixer<float>> make_float() override {
    if constexpr (scalar_tested<float>) {
      typename Mixer<float>::Weights rounded{};
      convert_weights(weights_, rounded);
      return make_any<Mixer<float>>(Tests::name, configurations<float>().at(std::size_t(which_)).config, rounded);
    } else {
      return nullptr;
    }
  }
  std::unique_ptr<AnyMixer<double>> make_double() override {
    if constexpr (scalar_tested<double>) {
      return make_any<Mixer<double>>(Tests::name, chosen_.config, weights_);
    } else {
      return nullptr;
    }
  }
  bool refuses_no_channels() const override {
    typename Mixer<double>::Config config = chosen_.config;
    // A core has nothing to draw.
    if constexpr (!std::is_empty_v<typename Mixer<double>::Weights> && requires { config.channels = 0; }) {
      config.channels = 0;
      Rng rng(test_seed);
      try {
        Mixer<double>::random_weights(config, rng);
        return false;
      } catch (const std::invalid_argument&) {
      }
    }
    return true;
  }
  bool has_reference() const override { return referenced; }
  Matrix<double> reference([[maybe_unused]] const Matrix<double>& x) const override {
    if constexpr (referenced) {
      return Tests::reference(chosen_.config, weights_, x);
    } else {
      return {};
    }
  }

 private:
  using Config = typename Mixer<double>::Config;
  using Weights = typename Mixer<double>::Weights;

  static constexpr bool referenced = requires(const Config& config, const Weights& weights, const Matrix<double>& x) {
    Tests::reference(config, weights, x);
  };

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations() {
    Rng rng(test_seed);
    return Tests::template configurations<T>(rng);
  }

  Index which_;
  Configuration<Mixer<double>> chosen_;
  Weights weights_;
};

}  // namespace detail

/// The entry for the mixer that `Tests` describes, as shown above.
template <class Tests>
MixerEntry mixer_entry() {
  return {Tests::name, &detail::SetupOf<Tests>::count, &detail::SetupOf<Tests>::make};
}

/// Registers the mixer that `Tests` describes.
template <class Tests>
struct MixerRegistration {
  MixerRegistration() { mixer_registry().push_back(mixer_entry<Tests>()); }
};

}  // namespace seqmix::test
