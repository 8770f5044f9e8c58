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

#include <cmath>
#include <functional>
#include <memory>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "any_mixer.hpp"

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
  std::unique_ptr<AnyMixer<double>> exact;                           // the same mixer with the same weights, in double
  std::function<Matrix<double>(const Matrix<double>& x)> reference;  // the naive reference; empty where there is none
};

/// What the registry knows of one mixer.
struct MixerEntry {
  std::string name;
  Index (*configurations)();
  MixerCase<float> (*make_float)(Index configuration);
  MixerCase<double> (*make_double)(Index configuration);

  template <class T>
  MixerCase<T> make(Index configuration) const {
    if constexpr (std::same_as<T, float>) {
      return make_float(configuration);
    } else {
      return make_double(configuration);
    }
  }
};

/// All registered mixers, in no particular order.
inline std::vector<MixerEntry>& mixer_registry() {
  static std::vector<MixerEntry> entries;
  return entries;
}

/// Adds noise to every tensor of initial weights: matrices [m, n] of deviation 0.5 / sqrt(n), vectors of 0.25.
template <class Weights>
void stir(Weights& weights, Rng& rng) {
  weights.visit([&](std::string_view, auto& tensor, Presence) {
    const double deviation = tensor.cols() > 1 ? 0.5 / std::sqrt(double(tensor.cols())) : 0.25;
    for (Index i = 0; i < tensor.size(); ++i) {
      using T = std::remove_cvref_t<decltype(tensor.data()[i])>;
      tensor.data()[i] += T(deviation * rng.normal());
    }
  });
}

/// Gives `to` the numbers of `from`, a Weights struct of the same kind for another scalar, rounded. The struct decides
/// which members there are (visit in the same order); `to` needs no particular content.
template <class From, class To>
void convert_weights(const From& from, To& to) {
  std::vector<Matrix<double>> tensors;
  from.visit(
      [&](std::string_view, const auto& tensor, Presence) { tensors.push_back(tensor.template cast<double>()); });
  std::size_t next = 0;
  to.visit([&](std::string_view, auto& tensor, Presence) {
    using T = std::remove_cvref_t<decltype(*tensor.data())>;
    tensor = tensors.at(next++).template cast<T>();
  });
}

/// Seed of everything random in the tests.
inline constexpr std::uint64_t test_seed = 20240923;

namespace detail {

template <class Tests>
struct CaseFactory {
  template <class T>
  using Mixer = typename Tests::template Mixer<T>;

  template <class T>
  static auto configurations() {
    Rng rng(test_seed);
    return Tests::template configurations<T>(rng);
  }

  static Index count() { return Index(configurations<double>().size()); }

  template <class T>
  static MixerCase<T> make(Index which) {
    const auto chosen = configurations<T>().at(std::size_t(which));
    const auto config = configurations<double>().at(std::size_t(which)).config;
    Rng rng(test_seed + 1 + std::uint64_t(which));
    typename Mixer<double>::Weights weights = [&] {
      if constexpr (requires { Tests::weights(config, rng); }) {
        return Tests::weights(config, rng);
      } else {
        auto initial = Mixer<double>::random_weights(config, rng);
        stir(initial, rng);
        return initial;
      }
    }();
    typename Mixer<T>::Weights rounded{};
    convert_weights(weights, rounded);
    convert_weights(rounded, weights);

    MixerCase<T> result;
    result.configuration = chosen.name;
    result.mixer = erase(Tests::name, Mixer<T>(chosen.config, rounded));
    result.exact = erase(Tests::name, Mixer<double>(config, weights));
    if constexpr (requires(const Matrix<double>& x) { Tests::reference(config, weights, x); }) {
      result.reference = [config, weights](const Matrix<double>& x) { return Tests::reference(config, weights, x); };
    }
    return result;
  }
};

}  // namespace detail

/// Registers the mixer that `Tests` describes, as shown above.
template <class Tests>
struct MixerRegistration {
  MixerRegistration() {
    using Factory = detail::CaseFactory<Tests>;
    mixer_registry().push_back(
        {Tests::name, &Factory::count, &Factory::template make<float>, &Factory::template make<double>});
  }
};

}  // namespace seqmix::test
